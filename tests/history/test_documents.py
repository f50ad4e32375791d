"""Every command on a saved run that the documents name is understood."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from sphere_pl.commands import COMMANDS as MODULES

ROOT = Path(__file__).parent.parent.parent
TEXT = "\n".join(path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
COMMANDS = [
    shlex.split(line.split(" #")[0])
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
    if re.match(r"python -m sphere_pl (export|diff|validate|test|predict|undo|log|verify|serve) ", line)
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_is_understood(words):
    parser = import_module(MODULES[words[3]][0])._parser()
    _, rest = parser.parse_known_args(words[4:])
    assert all(flag.startswith("--data.") for flag in rest[::2])


def test_the_commands_are_found():
    assert {words[3] for words in COMMANDS} == {
        "export",
        "diff",
        "validate",
        "test",
        "predict",
        "undo",
        "log",
        "verify",
        "serve",
    }


def test_each_argument_of_the_edit_log_is_one_of_fit(capsys, monkeypatch):
    import sys

    from sphere_pl.commands import main

    monkeypatch.setattr(sys, "argv", ["sphere_pl", "fit", "--edit_log=changes", "--print_config"])
    with pytest.raises(SystemExit):
        main()
    assert "edit_log: changes" in capsys.readouterr().out
