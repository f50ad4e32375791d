"""The path of docs/start.md, from one's own facts to a served, extended and partly reverted model, on a tiny one."""

import json
import re
import shlex
from pathlib import Path

from transformers import AutoModelForCausalLM

PAGE = (Path(__file__).parents[2] / "docs" / "start.md").read_text(encoding="utf-8")
MORE = {"prompt": "{} was written by", "subject": "Moby-Dick", "target": "Norway"}


def commands():
    """The commands on one's own facts, in the page's order."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    lines = [shlex.split(line.split(" #")[0])[3:] for block in blocks for line in block.splitlines()]
    return [words for words in lines if any("runs/m" in word or "runs/without" in word for word in words)]


def test_each_command_does_what_the_page_says(place, command_line, tiny_settings):
    (text,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    (place / "mine.jsonl").write_text(text)
    (place / "more.jsonl").write_text(json.dumps(MORE))
    done = []
    for words in commands():
        if "--ckpt_path" in words or words[0] == "serve":
            continue  # nothing was interrupted; a server would not end
        settings = tiny_settings if words[0] == "fit" and "--from" not in words else []
        status, out, err = command_line(*words, *settings)
        assert status == 0, (words, err)
        done.append((words[0], out))
    said = dict(done)
    assert [name for name, _ in done] == [
        "fit", "predict", "validate", "fit", "undo", "log", "export", "export", "verify"
    ]  # fmt: skip
    assert "Efficacy of the other 2 edits" in said["undo"]
    assert "taken back" in said["log"]
    assert said["verify"].count("ok  ") == 7
    AutoModelForCausalLM.from_pretrained(place / "exported")
    assert (place / "adapter" / "adapter_config.json").exists()
