"""`fit --from`: a run that continues a finished one."""

import csv
import json
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file

from sphere_pl.history.continuation import inherited_requests
from sphere_pl.history.log import read_log
from sphere_pl.history.saved import SavedRun
from sphere_pl.process.interrupts import RunInterrupted
from sphere_pl.run.checkpoints import RunCheckpoints
from sphere_pl.run.edit_log import EditLog
from sphere_pl.run.folder import has_logged_edits
from tests.saving import contents


def test_a_chain_of_runs_ends_with_the_weights_of_one_run(fit, place):
    assert fit("whole", range(6))[0] == 0
    assert fit("a", [0, 1])[0] == 0
    for name, start, numbers in (("b", "a", [2, 3]), ("c", "b", [4, 5])):
        status, _, err = fit(name, numbers, start=start)
        assert status == 0, err
    whole, chain = (load_file(place / name / "edited.safetensors") for name in ("whole", "c"))
    for name in whole:
        assert torch.equal(whole[name], chain[name])
    results, other = (json.loads((place / name / "results.json").read_text()) for name in ("whole", "c"))
    for when in ("before", "after"):
        assert results[when] == pytest.approx(other[when], nan_ok=True)
    assert other["continues"] == {"run_dir": "b", "edits": 4}
    assert results["edits"] == other["edits"] == 6
    history = read_log(place / "c")
    assert [each.run_dir for each in history.header.ancestors] == ["a", "b"]
    assert [request.case_id for request in history.requests] == list("012345")


@pytest.fixture
def finished(fit, place):
    """A finished run of two facts in the folder `a`."""
    status, _, err = fit("a", [0, 1])
    assert status == 0, err
    return place / "a"


def test_what_failed_in_an_earlier_run_is_edited_again_too(fit, finished, place):
    status, _, err = fit("b", [2, 3], "--retry=3", "--model.targets.steps=1", start="a", steps=False)
    assert status == 0, err
    results = json.loads((place / "b" / "results.json").read_text())
    again, edited = results["edited_again"], {each["edit"] for each in results["facts"]}
    assert edited == {1, 2, 3, 4}
    assert 0 < len(again) <= 3
    assert again == sorted(again)
    assert 1 in again or 2 in again, "one step moves too little for the earlier ones to hold"
    assert read_log(place / "b").edits == 4


def test_the_commands_on_a_run_see_the_whole_chain(fit, finished, command_line, place):
    before = contents(finished)
    assert fit("b", [2], "--projection.strength=0", start="a")[0] == 0
    assert contents(finished) == before  # the run that is continued stays as it is
    run = SavedRun.open(place / "b")
    assert run.section("projection")["strength"] == 0
    base = run.load_base()
    assert run.history.edits == 3
    earlier = run.weights(base, 2)
    for name, weight in SavedRun.open(finished).final().items():
        torch.testing.assert_close(earlier[name], weight, rtol=1e-5, atol=1e-6)
    shutil.rmtree(finished)  # its log is the chain's own
    assert command_line("export", "--run_dir=b", "--without", "0", "--out=without")[0] == 0
    assert [edit["case_id"] for edit in json.loads((place / "without" / "edits.json").read_text())] == ["1", "2"]
    status, out, _ = command_line("diff", "--run_dir=b", "--json")
    assert (status, len(json.loads(out))) == (0, 2)
    assert command_line("validate", "--run_dir=b")[0] == 0
    assert json.loads((place / "b" / "validation.json").read_text())["records"] == 3
    retention = [line for line in (place / "b" / "metrics.csv").read_text().splitlines() if line]
    assert "retention/earliest/efficacy" in retention[0]


def test_a_run_that_continues_resumes_where_it_was_killed(fit, finished, place, command_line, monkeypatch):
    assert fit("whole", [2, 3, 4, 5], start="a")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(EditLog, "on_train_batch_end", killed_at_the_second_batch(EditLog.on_train_batch_end))
        assert fit("b", [2, 3, 4, 5], "--checkpoints.max_overhead=1", start="a")[0] == 128 + signal.SIGTERM
    shutil.rmtree(finished)
    status, _, err = command_line("fit", "--run_dir=b", "--ckpt_path=last")
    assert status == 0, err
    whole, resumed = (load_file(place / name / "edited.safetensors") for name in ("whole", "b"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert read_log(place / "b").edits == 6


@pytest.mark.slow
def test_ten_runs_of_ten_facts_with_five_kills_end_with_the_weights_of_one_run(
    command_line, tiny_settings, place, monkeypatch
):
    towns = [
        {"prompt": "{} lies in", "subject": f"Town {n}", "target": "Norway" if n % 2 else "Italy"} for n in range(100)
    ]
    (place / "towns.jsonl").write_text("".join(json.dumps(each) + "\n" for each in towns))
    settings = ["--data.path=towns.jsonl", *tiny_settings, "--data.batch_size=5", "--checkpoints.max_overhead=1"]
    assert command_line("fit", *settings, "--run_dir=whole")[0] == 0
    for number in range(10):
        records = ["--data.limit=10", f"--data.offset={10 * number}"]
        given = [f"--from=run{number - 1}", "--data.path=towns.jsonl"] if number else settings
        with monkeypatch.context() as patch:
            if number % 2:
                patch.setattr(EditLog, "on_train_batch_end", killed_at_the_second_batch(EditLog.on_train_batch_end))
            status, _, err = command_line("fit", *given, *records, f"--run_dir=run{number}")
        assert status == (128 + signal.SIGTERM if number % 2 else 0), err
        if number % 2:
            status, _, err = command_line("fit", f"--run_dir=run{number}", "--ckpt_path=last")
            assert status == 0, err
    whole, chain = (load_file(place / name / "edited.safetensors") for name in ("whole", "run9"))
    assert all(torch.equal(whole[name], chain[name]) for name in whole)
    assert [request.subject for request in read_log(place / "run9").requests] == [each["subject"] for each in towns]
    one, ten = (json.loads((place / name / "results.json").read_text()) for name in ("whole", "run9"))
    assert one["after"] == pytest.approx(ten["after"], nan_ok=True)


def killed_at_the_second_batch(logged, error=None):
    """`on_train_batch_end` that is stopped when it is called again."""
    calls = []

    def killed(log, *arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise error or RunInterrupted(signal.SIGTERM)
        logged(log, *arguments)

    return killed


def test_a_methods_memory_without_keys_goes_with_the_run(fit, place):
    method = ["--model.method=sphere_pl.methods.UltraEdit", "--model.method.learning_rate=0.01"]
    for name, numbers, start, options in (
        ("whole", range(4), None, method), ("a", [0, 1], None, method), ("b", [2, 3], "a", [])
    ):  # fmt: skip
        status, _, err = fit(name, numbers, *options, start=start, steps=False)
        assert status == 0, err
    whole, chain = (load_file(place / name / "edited.safetensors") for name in ("whole", "b"))
    assert all(torch.equal(whole[name], chain[name]) for name in whole)


def test_live_weights_go_with_a_run_under_prune(fit, place):
    prune = ["--trainer.callbacks=sphere_callbacks.SpectrumRestraint"]
    for name, numbers, start, options in (
        ("whole", range(4), None, prune), ("a", [0, 1], None, prune), ("b", [2, 3], "a", [])
    ):  # fmt: skip
        status, _, err = fit(name, numbers, *options, start=start)
        assert status == 0, err
    whole, chain = (load_file(place / name / "edited.safetensors") for name in ("whole", "b"))
    assert all(torch.equal(whole[name], chain[name]) for name in whole)


def changed_log(folder):
    text = (folder / "edits.jsonl").read_text()
    (folder / "edits.jsonl").write_text(text.replace("Berlin", "London"))


def changed_weights(folder):
    tensors = load_file(folder / "edited.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "edited.safetensors")


def changed_batch(folder):
    path = folder / "edits" / "batch-00000.safetensors"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + b"x")


# What may have happened to a finished run, and what is said then.
HARM = [
    (lambda folder: (folder / "results.json").unlink(), "has not come to its end"),
    (changed_log, "it was changed"),
    (changed_weights, "another SHA-256"),
    (changed_batch, "another SHA-256"),
    (lambda folder: (folder / "edits.jsonl").unlink(), "holds no edits.jsonl"),
    (shutil.rmtree, "deleted or moved"),
]


def test_a_run_that_is_not_as_it_was_left_is_not_continued(fit, finished, place):
    for number, (harm, expected) in enumerate(HARM):
        folder = shutil.copytree(finished, place / f"copy-{number}")
        harm(folder)
        status, out, err = fit("b", [2], start=folder)
        assert (status, out) == (2, ""), expected
        assert expected in " ".join(err.split())
        assert len(err.splitlines()) == 1
        assert not (place / "b").exists()


def test_what_would_break_a_chain_is_refused(fit, finished, place):
    before = contents(finished)
    for options, expected in [
        (["--model.layers=[1]"], "edits the layers [1, 2]"),
        (["--model.dtype=bfloat16"], "is not the unedited model of a"),
        (["--run_dir=a"], "stays as it is"),
        (["--run_dir=a", "--overwrite"], "stays as it is"),
    ]:
        status, _, err = fit("b", [2], *options, start="a")
        assert status == 2
        assert expected in " ".join(err.split())
        assert not (place / "b").exists()
        assert contents(finished) == before


def test_a_run_without_new_facts_or_without_a_log_of_keys_is_refused(fit, finished, place):
    status, _, err = fit("b", [], start="a")
    assert (status, "which facts to add" in err) == (2, True)
    assert fit("c", [0], "--edit_log=changes")[0] == 0
    status, _, err = fit("b", [2], start="c")
    assert (status, "--edit_log changes" in err) == (2, True)
    assert not (place / "b" / "edits.jsonl").exists()


def test_a_chain_of_three_runs_is_asked_and_handed_on_as_one(fit, finished, place, command_line):
    for name, number, start in (("b", 2, "a"), ("c", 3, "b")):
        assert fit(name, [number], start=start)[0] == 0
    chain = SavedRun.open(place / "c")
    assert command_line("predict", "--run_dir=c", "--max_tokens=3")[0] == 0
    assert len(json.loads((place / "c" / "predictions.json").read_text())) == 4
    assert command_line("predict", "--run_dir=c", "--at=2", "--max_tokens=3", "--out=at.json")[0] == 0
    assert len(json.loads((place / "at.json").read_text())) == 2
    assert command_line("export", "--run_dir=c", "--adapter", "--out=adapter")[0] == 0
    factors = load_file(place / "adapter" / "adapter_model.safetensors")
    assert {min(each.shape) for each in factors.values()} == {4}  # as many as there are edits in all three
    assert command_line("verify", "c", "--served", "adapter")[0] == 0
    assert command_line("export", "--run_dir=c", "--without", "Rome", "2", "--out=without")[0] == 0
    assert [each["case_id"] for each in json.loads((place / "without" / "edits.json").read_text())] == ["0", "3"]
    base = chain.load_base()
    for name, weight in SavedRun.open(place / "b").final().items():
        torch.testing.assert_close(chain.weights(base, 3)[name], weight, rtol=1e-5, atol=1e-6)


def test_a_run_that_is_resumed_has_found_each_fact_once_that_was_edited_again(fit, place):
    assert fit("a", [0, 1], "--retry=2", "--model.targets.steps=1", steps=False)[0] == 0
    assert fit("b", [2], start="a", steps=False)[0] == 0
    assert [entry.case_ids for entry in read_log(place / "a").entries] == [["0", "1"], ["0", "1"]]
    assert [request.case_id for request in inherited_requests(place / "b", place / "a")] == ["0", "1"]


@pytest.mark.parametrize("option", ["--config=callbacks/plain", "--config=callbacks/prune"])
def test_damage_of_what_a_run_left_for_the_next_one_is_found_by_verify(fit, place, command_line, option):
    assert fit("a", [0, 1], option)[0] == 0
    assert "ok  continuation: continue.safetensors is whole" in command_line("verify", "a")[1]
    path = place / "a" / "continue.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    status, out, err = command_line("verify", "a")
    assert status == 2
    assert "NOT OK  continuation" in out
    assert "a: continuation is not as expected" in err


def test_a_resumed_run_under_prune_counts_from_the_unedited_model(fit, place, command_line, monkeypatch):
    options = "--config=callbacks/prune", "--checkpoints.max_overhead=1", "--trainer.val_check_interval=1"
    assert fit("whole", [0, 1, 2, 3], *options)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(EditLog, "on_train_batch_end", killed_at_the_second_batch(EditLog.on_train_batch_end))
        assert fit("b", [0, 1, 2, 3], *options)[0] == 128 + signal.SIGTERM
    status, _, err = command_line("fit", "--run_dir=b", "--ckpt_path=last")
    assert status == 0, err
    whole, resumed = (json.loads((place / name / "results.json").read_text()) for name in ("whole", "b"))
    assert resumed["weights_moved"] == whole["weights_moved"] > 0
    tables = [list(csv.DictReader((place / name / "metrics.csv").read_text().splitlines())) for name in ("whole", "b")]
    for rows in zip(*tables, strict=True):
        before, after = ({k: v for k, v in row.items() if not k.startswith("time/")} for row in rows)
        assert before == after


@pytest.mark.parametrize("start", [None, "a"])
def test_a_run_that_was_killed_before_its_first_checkpoint_is_begun_again(
    fit, finished, place, command_line, monkeypatch, start
):
    """One command again and again does: the edits that were logged before a checkpoint was due are made again."""
    assert fit("whole", [2, 3, 4], start=start)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpoints, "_is_due", killed)
        assert fit("b", [2, 3, 4], start=start)[0] == 9
    assert has_logged_edits(place / "b")
    assert "name another --run_dir" in fit("b", [2, 3, 4], start=start)[2]
    status, _, err = fit("b", [2, 3, 4], "--ckpt_path=last", start=start)
    assert status == 0, err
    whole, again = (load_file(place / name / "edited.safetensors") for name in ("whole", "b"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_the_log_of_a_run_that_was_to_write_no_checkpoints_is_not_deleted_to_begin_again(fit, place, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            EditLog, "on_train_batch_end", killed_at_the_second_batch(EditLog.on_train_batch_end, SystemExit(9))
        )
        assert fit("b", [0, 1, 2], "--checkpoints.every_n_batches=0")[0] == 9
    status, _, err = fit("b", [0, 1, 2], "--ckpt_path=last")
    assert status == 2
    assert "holds the edits of a run that left no checkpoint" in err


def killed(self, trainer):
    """`_is_due` of a run that is killed after its first batch."""
    if self._done:
        raise SystemExit(9)
    return False
