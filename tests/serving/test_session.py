"""Edits, questions and undoes by hand, and what is left of them when the process is gone."""

import ctypes
import gc
import json
import sys
import time
from pathlib import Path
from statistics import median

import pytest
import torch
from lightning.pytorch import Trainer

from sphere_pl.commands import predict
from sphere_pl.commands.validate import evaluation_settings
from sphere_pl.errors import UserError
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.history.saved import LoadOptions, SavedRun
from sphere_pl.serving.session import EditingSession, Start
from tests.serving.conftest import FACT, OTHER, THIRD

pytestmark = pytest.mark.filterwarnings("ignore:The corpus")
PROMPTS = ["The capital of France is", "Rome is a city in"]


def weights(session):
    return {name: value.detach().clone() for name, value in session.lm.model.named_parameters()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_an_edit_is_judged_by_an_answer_that_is_as_long_as_its_target(open_session):
    session = open_session()
    target = " ".join(["Berlin is a city in Germany by the sea."] * 2)
    edited = session.edit({**FACT, "target": target})
    shown, asked = edited.answers[0].after, len(session.lm.tokenizer(target)["input_ids"])
    assert len(session.lm.tokenizer(shown)["input_ids"]) >= asked > 8


def test_edits_are_asked_undone_and_there_again_in_a_new_process(open_session):
    session = open_session()
    unedited = weights(session)
    with pytest.raises(UserError, match="no edit to export"):
        session.export("model")
    first, second = session.edit(FACT), session.edit(OTHER)
    assert (first.case_id, second.case_id) == ("s1", "s2")
    assert [each.kind for each in second.answers] == ["fact", "neighbor"]
    assert second.geometry.norm > first.geometry.norm > 0
    edited, asked = weights(session), session.ask(PROMPTS)
    assert not same(edited, unedited)
    assert [each.name for each in session.states.folder.iterdir() if each.is_dir()] == ["00002"]

    again = open_session()  # as after a kill: nothing was closed
    assert same(weights(again), edited)
    assert again.ask(PROMPTS) == asked
    assert [each["case_id"] for each in again.overview()["edits"]] == ["s1", "s2"]

    undone = again.undo("Rome")
    assert (undone.case_id, undone.exact) == ("s2", True)
    assert again.overview()["edits"][-1]["run"] == str(again.states.folder), "the state that held it is gone"
    assert undone.geometry.norm == pytest.approx(first.geometry.norm, rel=1e-3)
    assert again.edit(OTHER).case_id == "s3"
    states = [each["state"] for each in open_session().overview()["edits"]]
    assert states == ["edited", "edited", "taken back"]


def forbidden(*_, **__):
    raise AssertionError("found out again")


def trainers():
    gc.collect()
    return [each for each in gc.get_objects() if type(each) is Trainer]


def test_a_further_edit_finds_nothing_out_again_and_ends_with_the_weights_of_a_new_process(open_session, monkeypatch):
    session = open_session()
    others = trainers()  # of other tests
    first = session.edit(FACT)
    assert {(each.unedited == each.before) for each in first.answers} == {True}
    with monkeypatch.context() as patch:
        patch.setattr("sphere_pl.editing.prepared.StatePreparation.find", forbidden)
        patch.setattr("sphere_pl.editing.preparation.sample_contexts", forbidden)
        patch.setattr("sphere_pl.serving.session.model_in_memory", forbidden)
        patch.setattr("sphere_pl.commands.fit.open_earlier", forbidden)
        session.edit(OTHER)
        session.edit(THIRD)
    other = open_session("other")
    other.edit(FACT)
    other.edit(OTHER)
    other = open_session("other")  # which reads weights and earlier keys from the disk
    other.edit(THIRD)
    assert same(weights(session), weights(other))
    assert trainers() == others  # a run's trainer goes with all that it holds
    header = SavedRun.open(session.states.current).history.header
    assert [(each.run_dir, each.entries, each.edits) for each in header.ancestors] == [
        (str(session.states.folder), 2, 2)
    ]


def results_of(session):
    return [(each["case_id"], each["result"] is not None) for each in session.overview()["edits"]]


def test_an_edit_asks_few_of_the_earlier_ones_and_all_are_asked_on_demand(open_session, monkeypatch):
    monkeypatch.setattr("sphere_pl.serving.session.AGAIN", 1)
    session = open_session()
    for fact in (FACT, OTHER, THIRD):
        session.edit(fact)
    assert [asked for _, asked in results_of(session)].count(False) == 1
    assert results_of(session)[-1] == ("s3", True)
    edited = weights(session)
    found = session.ask_all()
    assert found["edits"] == 3
    assert all(asked for _, asked in results_of(session))
    outcomes = [each["result"] for each in open_session().overview()["edits"]]
    assert outcomes.count("holds") == found["held"]
    assert same(weights(session), edited)
    session.undo("s1")
    assert [asked for _, asked in results_of(session)].count(False) == 2  # one was asked, one not; one is taken back


def test_a_later_run_measures_what_it_would_have_without_the_session(open_session):
    session = open_session()
    session.edit(FACT)
    assert evaluation_settings(SavedRun.open(session.states.current)) == EvaluationSettings(keep_unedited=True)


@pytest.mark.slow
def test_two_hundred_edits_in_a_row_take_no_more_memory_and_leave_no_file_open(start, open_session):
    start.settings["model.guard.first_batch"] = "warn"  # so many towns share a random model's few keys
    session, taken = open_session(), []
    for number in range(200):
        began = time.process_time()
        session.edit({"prompt": "{} lies in", "subject": f"Town {number}", "target": "Norway"})
        files = len(list(Path("/proc/self/fd").iterdir()))
        taken.append((*held(), files, time.process_time() - began))
    (memory, blocks, files, seconds), (memory_then, blocks_then, files_then, seconds_then) = (
        [median(column) for column in zip(*part, strict=True)] for part in (taken[20:40], taken[-20:])
    )
    # An edit leaves its entry of the log, its keys and pytest's records of what was logged: 11 kB and 170 objects were
    # seen, twice that is allowed.
    assert memory_then - memory < 170 * 22e3
    assert blocks_then - blocks < 170 * 340
    assert files_then == files
    assert seconds_then < 2 * seconds
    kept = sum(path.stat().st_size for path in session.states.folder.rglob("*") if path.is_file())
    assert kept / 200 < 100_000
    assert len(SavedRun.open(session.states.current).history.header.ancestors) == 1


class Allocated(ctypes.Structure):
    """What glibc says of its heap (`mallinfo2`)."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in _names]


def held():
    """Bytes of tensors and all else that was asked of the C library and not given back, and blocks of Python's objects.

    What the process has of main memory says less: every edit needs 25 MB for a moment, and from some edit on the C
    library keeps them for the next one.
    """
    gc.collect()
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        pytest.skip("the C library does not say what it has given out")
    library.mallinfo2.restype = Allocated
    found = library.mallinfo2()
    return found.uordblks + found.hblkhd, sys.getallocatedblocks()


def test_taking_back_the_only_edit_of_a_model_gives_the_unedited_model(open_session):
    name = "mit Lücke, 模型 & Co"
    session = open_session(name)
    unedited = weights(session)
    session.edit({**FACT, "subject": "فرنسا"})
    assert [each["subject"] for each in open_session(name).overview()["edits"]] == ["فرنسا"]
    assert session.undo("فرنسا").geometry.norm == 0
    assert same(weights(session), unedited)
    assert same(weights(open_session(name)), unedited)
    assert session.edit(FACT).case_id == "s1"


@pytest.mark.parametrize(
    ("change", "said"),
    [({"target": " "}, "no target"), ({"subject": ""}, "no subject"), ({"prompt": "{} x" + "x" * 5000}, "tokens")],
)
def test_what_cannot_be_edited_leaves_everything_as_it_was(open_session, change, said):
    session = open_session()
    before = weights(session)
    with pytest.raises(UserError, match=said):
        session.edit({**FACT, **change})
    assert same(weights(session), before)
    assert session.states.current is None


def test_an_edit_that_fails_midway_leaves_no_folder_and_the_model_as_it_was(open_session, monkeypatch):
    session = open_session()
    session.edit(FACT)
    before, current = weights(session), session.states.current
    monkeypatch.setattr("sphere_pl.serving.states.write_text", _fail)
    with pytest.raises(OSError, match="disk"):
        session.edit(OTHER)
    assert same(weights(session), before)
    assert session.states.current == current
    assert [each for each in session.states.folder.iterdir() if each.is_dir()] == [current]
    monkeypatch.undo()
    assert session.edit(OTHER).case_id == "s2"


def _fail(*_):
    raise OSError("no room on the disk")


def test_a_run_is_served_with_its_edits_and_stays_as_it_is(open_session, tmp_path):
    run_dir = tmp_path / "run"
    open_session().edit(FACT)
    (tmp_path / "served" / "serving" / "00001").rename(run_dir)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    session = EditingSession.open(run_dir, LoadOptions(device="cpu"))
    with pytest.raises(UserError, match="base model"):
        session.undo("s1")
    session.edit(OTHER)
    assert {path: path.read_bytes() for path in before} == before
    assert SavedRun.open(session.states.current).history.edits == 2
    with (run_dir / "edits.jsonl").open("a") as log:
        log.write("\n")
    with pytest.raises(UserError, match="another run"):
        EditingSession.open(run_dir, LoadOptions(device="cpu"))


def test_a_folder_with_edits_of_another_model_is_refused(open_session):
    open_session().edit(FACT)
    folder = open_session().states.run_dir
    with pytest.raises(UserError, match="holds edits of"):
        EditingSession.open(folder, LoadOptions(device="cpu"), Start("other", "float32", {}))


def test_a_killed_edit_is_gone_and_the_ones_before_are_not(open_session):
    session = open_session()
    session.edit(FACT)
    (session.states.folder / "00002").mkdir()
    (session.states.folder / "00002" / "edits.jsonl").write_text("half")
    assert [each["case_id"] for each in open_session().overview()["edits"]] == ["s1"]
    assert not (session.states.folder / "00002").exists()


@pytest.mark.parametrize("kind", ["model", "adapter", "delta"])
def test_what_is_exported_holds_the_edits_and_the_model_stays_edited(open_session, kind):
    session = open_session()
    session.edit(FACT)
    before = weights(session)
    folder, _ = session.export(kind)
    assert [each["case_id"] for each in json.loads((folder / "edits.json").read_text())] == ["s1"]
    assert same(weights(session), before)


def test_without_edits_there_is_one_answer(open_session, monkeypatch):
    session, asked, answer = open_session(), [], predict.continue_prompts

    def counted(*arguments):
        asked.append(arguments)
        return answer(*arguments)

    monkeypatch.setattr(predict, "continue_prompts", counted)
    (case,) = session.ask(PROMPTS[:1])
    assert case.before == case.after
    assert len(asked) == 1, "two passes could differ by rounding"


def test_a_fact_is_read_before_it_is_edited(open_session):
    session = open_session()
    reading = session.read(FACT)
    assert (reading.text, reading.between) == ("The capital of France is", " ")
    assert "".join(reading.pieces).strip() == "Berlin"
    assert len(reading.neighbors) == 2
    japanese = session.read({**FACT, "target": "大阪"})
    ids = session.lm.tokenizer("大阪", add_special_tokens=False)["input_ids"]
    assert japanese.target_tokens >= len(ids) > len(japanese.pieces), "a character of several tokens is one piece"
