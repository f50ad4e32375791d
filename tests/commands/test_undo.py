"""A run without some of its edits as a run of its own; what the log says of it."""

import json

import pytest
import torch
from safetensors.torch import load_file

from sphere_pl.commands import export, log, undo, verify
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
    assert "1 of 1 answers" in said or "0 of 1 answers" in said
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
