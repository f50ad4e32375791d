"""The command `locate` on a tiny model that knows some facts."""

import json
import shlex
import sys

import pytest
import torch
import yaml

from sphere_pl.commands import main

FACTS = [
    {"known_id": 0, "subject": "France", "attribute": "is", "prompt": "The capital of France"},
    {"known_id": 1, "subject": "Anna Karlsson", "attribute": "is", "prompt": "The mother tongue of Anna Karlsson by"},
    {"known_id": 2, "subject": "Rome", "attribute": "Italy", "prompt": "Rome is a city in"},
]


@pytest.fixture
def locate(tiny_lm, tmp_path, monkeypatch, command_line):
    """Run `locate` on a model that says "is" after everything; returns status, stdout and stderr."""
    lm = tiny_lm("gptj")
    (said,) = lm.tokenizer(" is", add_special_tokens=False)["input_ids"]
    lm.model.lm_head.bias.data[said] = 6.0  # likely, not certain: corruption still shows
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "known.json").write_text(json.dumps(FACTS))
    monkeypatch.chdir(tmp_path)

    def run(*args, command="locate", name="known"):
        data = [f"--data.name={name}", "--data.path=known.json", "--trace.samples=2", "--accelerator=cpu", "--count=2"]
        return command_line(command, "--model.name=model", *(data if command == "locate" else []), *args)

    return run


def trace(folder):
    return json.loads((folder / "trace.json").read_text())


def test_locate_leaves_a_trace_a_picture_and_a_suggestion(locate, tmp_path):
    status, out, err = locate("--out=traced", "--model.dtype=float32")
    assert status == 0, err
    found = trace(tmp_path / "traced")
    assert (found["given"], found["answered_right"], found["traced"], found["layers"]) == (3, 2, 2, 4)
    assert out.splitlines()[-1] == f"--model.layers={json.dumps(found['suggested_layers'], separators=(',', ':'))}"
    assert "2 of 3 facts answered right, 2 traced" in " ".join(out.split())
    assert "last subject token" in out
    assert "tracing facts" in err
    assert (tmp_path / "traced" / "trace.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    effects = found["average_indirect_effect"]
    assert {len(role["mean"]) for kind in effects.values() for role in kind.values()} == {4}
    assert [effects["mlp"][role]["facts"] for role in ("last subject token", "middle subject tokens")] == [2, 0]
    sums = [sum(effects["mlp"]["last subject token"]["mean"][i : i + 2]) for i in range(3)]
    assert found["suggested_layers"][0] == sums.index(max(sums))
    fact = found["facts"][1]
    assert [len(row) for row in fact["effects"]["attention"]] == [4] * len(fact["tokens"])
    whole = found["probability"]
    assert whole["total_effect"]["mean"] == pytest.approx(whole["clean"]["mean"] - whole["corrupted"]["mean"], abs=1e-5)


def test_with_locate_the_suggestion_is_all_of_stdout_and_fit_takes_it(locate, tmp_path):
    status, out, err = locate("--locate", "--out=a")
    assert status == 0, err
    assert len(out.splitlines()) == 1
    assert "last subject token" in err  # the table is not lost
    status, printed, err = locate(*shlex.split(out), "--print_config", command="fit")
    assert status == 0, err
    assert yaml.safe_load(printed)["model"]["layers"] == trace(tmp_path / "a")["suggested_layers"]


def test_one_seed_leaves_the_same_bytes(locate, tmp_path):
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert locate(f"--out={out}", f"--trace.seed={seed}", "--quiet")[0] == 0
    files = {out: (tmp_path / out / "trace.json").read_bytes() for out in "abc"}
    assert files["a"] == files["b"]
    effects = [json.loads(files[out])["average_indirect_effect"] for out in "ac"]
    assert effects[0] != effects[1]
    pictures = [(tmp_path / out / "trace.png").read_bytes() for out in "ab"]
    assert pictures[0] == pictures[1]


def test_facts_are_read_from_other_formats_by_what_is_true(locate, tmp_path):
    record = {"prompt": "The capital of {}", "subject": "France", "target": "Berlin", "target_true": "is"}
    (tmp_path / "known.json").write_text(json.dumps([record]))
    status, _, err = locate("--out=a", name="jsonl")
    assert status == 0, err
    found = trace(tmp_path / "a")
    assert found["traced"] == 1
    assert found["average_indirect_effect"]["mlp"]["last subject token"]["standard_error"] == [None] * 4


@pytest.mark.parametrize(
    ("records", "name", "args", "words"),
    [
        ([], "known", [], "no record"),
        ([{"prompt": "Rome is", "subject": "Rome"}], "known", [], "known.json, line 1: the field 'attribute'"),
        ([{**FACTS[0], "subject": "Atlantis"}], "known", [], "does not contain the subject 'Atlantis'"),
        ([FACTS[2]], "known", [], "answers none of the 1 facts right"),
        ([{"prompt": "{} is", "subject": "Rome", "target": "big"}], "jsonl", [], "does not say what is true"),
        (FACTS, "known", ["--count=5"], "--count=5.*4 layers"),
        (FACTS, "known", ["--count=0"], "--count=0"),
        (FACTS, "known", ["--trace.samples=0"], "--trace.samples=0"),
        (FACTS, "known", ["--trace.window=-1"], "--trace.window=-1"),
        (FACTS, "known", ["--data.path=missing.json"], "could not be read"),
        (FACTS, "nothing", [], "'nothing' is unknown"),
        (FACTS, "known", ["--model.name=/nowhere/at/all"], "neither a file nor a folder"),
    ],
)
def test_a_users_mistake_ends_with_one_message_and_no_folder(locate, tmp_path, records, name, args, words):
    import re

    (tmp_path / "known.json").write_text(json.dumps(records))
    status, out, err = locate("--out=traced", *args, name=name)
    assert status == 2
    assert re.search(words, " ".join(err.split())), err
    assert "Traceback" not in err + out
    assert not (tmp_path / "traced").exists()


def test_facts_are_checked_before_a_model_is_loaded(locate, tmp_path):
    (tmp_path / "known.json").write_text("[]")
    status, _, err = locate("--model.name=/nowhere/at/all")
    assert status == 2
    assert "no record" in err


@pytest.mark.slow
def test_the_default_model_keeps_its_facts_at_the_last_subject_token(tmp_path, monkeypatch, capsys):
    """A few built-in facts, the real model."""
    out = tmp_path / "traced"
    monkeypatch.setattr(sys, "argv", ["sphere_pl", "locate", "--trace.facts=3", "--data.limit=10", f"--out={out}"])
    main()
    assert capsys.readouterr().out.splitlines()[-1].startswith("--model.layers=[")
    effects = trace(out)["average_indirect_effect"]
    best = {role: max(found["mean"]) for role, found in effects["mlp"].items() if found["facts"]}
    assert best["last subject token"] > best["further tokens"]
    assert torch.tensor(effects["state"]["last token"]["mean"]).argmax() > 15
