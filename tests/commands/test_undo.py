"""A run without some of its edits as a run of its own; what the log says of it."""

import json

import pytest
import torch
from safetensors.torch import load_file

from sphere_pl.commands import diff, export, log, undo, validate, verify
from sphere_pl.history.continuation import open_earlier
from sphere_pl.history.log import read_log
from sphere_pl.history.saved import SavedRun
from tests.saving import contents


@pytest.fixture
def undone(fit, place, capsys):
    """A run of three facts without the one about Rome, in the folder `a-undone`; what was said."""
    assert fit("a", [0, 1, 2])[0] == 0
    capsys.readouterr()
    before = contents(place / "a")
    undo.main(["--run_dir=a", "rome"])
    assert contents(place / "a") == before
    return place / "a-undone", capsys.readouterr().out


def test_what_is_left_is_a_run_that_all_commands_take(fit, undone, place, capsys):
    folder, said = undone
    assert "1 of 1 answer is" in said or "0 of 1 answer are" in said
    assert "Efficacy of the other 2 edits" in said
    assert "Approximate" in said
    history = read_log(folder)
    assert [request.case_id for request in history.requests] == ["0", "2"]
    assert (history.edits, history.header.removed[0]["subject"]) == (2, "Rome")
    verify.main([str(folder)])
    export.main(["--run_dir=a", "--without", "1", "--delta_only", "--out=reference"])
    export.main(["--run_dir", str(folder), "--out=exported"])
    base = SavedRun.open(folder).load_base()
    replayed = SavedRun.open(place / "a").weights(base)
    for name, weight in SavedRun.open(folder).final().items():
        assert not torch.equal(weight, replayed[name])
    assert "## Taken back" in (place / "exported" / "README.md").read_text()
    results = json.loads((folder / "results.json").read_text())
    assert (results["edits"], results["undone"]) == (2, ["1"])
    assert (folder / "report.html").exists()
    status, _, err = fit("b", [3], start="a-undone")
    assert status == 0, err
    assert [request.case_id for request in read_log(place / "b").requests] == ["0", "2", "3"]
    assert len(read_log(place / "b").header.removed) == 1
    capsys.readouterr()
    log.main(["b", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["state"], row["case_id"], row["run"]) for row in rows] == [
        ("edited", "0", "a"), ("edited", "2", "a"), ("edited", "3", "b"), ("taken back", "1", "a")
    ]  # fmt: skip
    assert all(row["time"] for row in rows)
    log.main(["--run_dir=b"])
    assert "taken back" in capsys.readouterr().out


def test_a_chain_of_three_runs_is_undone_in_its_middle_and_edited_again(fit, place, capsys, caplog):
    assert fit("a", [0])[0] == 0
    for name, number, start in (("b", 1, "a"), ("c", 2, "b")):
        assert fit(name, [number], start=start)[0] == 0
    undo.main(["--run_dir=c", "Rome", "--out=d"])
    capsys.readouterr()
    run = SavedRun.open(place / "d")
    assert [request.case_id for request in run.history.requests] == ["0", "2"]
    assert [(each.run_dir, each.edits) for each in run.history.header.ancestors] == [("a", 1), ("b", 1), ("c", 2)]
    diff.main(["--run_dir=d", "--at=1", "--json"])
    assert len(json.loads(capsys.readouterr().out)) == 2
    validate.main(["--run_dir=d", "--at=1"])
    export.main(["--run_dir=d", "--at=1", "--delta_only", "--out=first"])
    assert [each["case_id"] for each in json.loads((place / "first" / "edits.json").read_text())] == ["0"]
    base = run.load_base()
    for name, weight in SavedRun.open(place / "a").final().items():
        torch.testing.assert_close(run.weights(base, 1)[name], weight, rtol=1e-5, atol=1e-6)
    status, _, err = fit("e", [1], start="d")
    assert status == 0, err
    assert "1 of the facts to add had been taken back in d, and is edited again" in caplog.text
    history = read_log(place / "e")
    assert [request.subject for request in history.requests] == ["France", "Anna Karlsson", "Rome"]
    assert [each.run_dir for each in history.header.ancestors] == ["a", "b", "c", "d"]
    undo.main(["--run_dir=e", "rome", "Anna Karlsson", "--out=f"])
    assert [request.subject for request in read_log(place / "f").requests] == ["France"]
    assert [each["subject"] for each in read_log(place / "f").header.removed] == ["Rome", "Anna Karlsson", "Rome"]
    verify.main([str(place / "f")])


def test_taking_back_the_last_batch_is_exact(fit, place, capsys):
    assert fit("short", [0, 1])[0] == 0
    assert fit("a", [0, 1, 2])[0] == 0
    capsys.readouterr()
    undo.main(["--run_dir=a", "2", "--out=b"])
    assert "Exact" in capsys.readouterr().out
    short, left = (load_file(place / name / "edited.safetensors") for name in ("short", "b"))
    for name, weight in short.items():
        torch.testing.assert_close(left[name], weight, rtol=1e-4, atol=1e-6)
    assert [request.case_id for request in open_earlier(place / "b").requests] == ["0", "1"]


def test_what_cannot_be_taken_back_is_said_and_leaves_nothing(fit, place, command_line):
    assert fit("a", [0, 1])[0] == 0
    for arguments, expected in [
        (["Rom"], "Did you mean Rome?"),
        (["0", "Rome"], "take back all edits"),
        (["Rome", "--out=a"], "exists and is not empty"),
    ]:
        status, out, err = command_line("undo", "--run_dir=a", *arguments)
        assert (status, out) == (2, "")
        assert expected in err
        assert not (place / "a-undone").exists()


def test_a_fact_that_was_edited_again_is_one_edit_and_is_taken_back_once(fit, place, capsys):
    assert fit("a", [0, 1, 2], "--retry=3", "--model.targets.steps=1", steps=False)[0] == 0
    assert [entry.case_ids for entry in read_log(place / "a").entries] == [["0", "1"], ["2"], ["0", "1"], ["2"]]
    undo.main(["--run_dir=a", "Rome"])
    assert "Efficacy of the other 2 edits" in capsys.readouterr().out
    undone = read_log(place / "a-undone")
    assert [request.case_id for request in undone.requests] == ["0", "2"]
    assert [entry.edits for entry in undone.entries] == [1, 2, 2, 2]
    assert fit("b", [3], "--retry=0", start="a-undone", steps=False)[0] == 0
    capsys.readouterr()
    for name, cases in (("a", "012"), ("a-undone", "021"), ("b", "0231")):
        log.main([name, "--json"])
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert "".join(row["case_id"] for row in rows) == cases
        failed = set(json.loads((place / name / "results.json").read_text())["failed_edits"])
        edited = [row for row in rows if row["state"] == "edited"]
        assert [row["result"] == "holds" for row in edited] == [n not in failed for n in range(1, len(edited) + 1)]


def test_a_chain_of_two_methods_with_callbacks_is_undone(fit, place, capsys):
    assert fit("a", [0, 1], "--config=callbacks/rect")[0] == 0
    assert fit("b", [2, 3], "--config=method/memit", start="a")[0] == 0
    undo.main(["--run_dir=b", "Oslo"])
    history = read_log(place / "b-undone")
    assert [request.case_id for request in history.requests] == ["0", "1", "2"]
    assert [each.recipe["method"]["class_path"] for each in history.header.ancestors] == [
        "sphere_pl.methods.AlphaEdit", "sphere_pl.methods.MEMIT"
    ]  # fmt: skip
    verify.main(["b-undone"])


@pytest.mark.parametrize("named", [".", "edits/.."])
def test_a_run_that_is_named_by_dots_is_undone_beside_it(fit, place, monkeypatch, named):
    assert fit("a", [0, 1])[0] == 0
    monkeypatch.chdir(place / "a")
    undo.main([f"--run_dir={named}", "Rome"])
    assert read_log(place / "a-undone").edits == 1
