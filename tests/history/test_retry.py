"""Failed edits that are edited again in a last batch: log, replay and a resumed run hold."""

import pytest
import torch

from sphere_pl.data.datamodule import EditLoader
from sphere_pl.editor import SequentialEditor
from sphere_pl.errors import UserError
from sphere_pl.history.replay import solve_without
from sphere_pl.history.saved import SavedRun


@pytest.fixture
def failing(monkeypatch):
    """Say which edits have failed."""

    def set_to(places):
        monkeypatch.setattr(SequentialEditor, "failing", lambda self: places)

    return set_to


def test_the_last_batch_holds_what_failed_and_the_log_tells_the_stream_once(fit, failing):
    failing([1, 2])
    run = fit(retry=3, val_check_interval=1)
    saved = SavedRun.open(run.folder)
    assert [entry.case_ids for entry in saved.history.entries] == [["0", "1"], ["2", "3"], ["1", "2"]]
    assert [entry.edits for entry in saved.history.entries] == [2, 4, 4]
    assert [request.case_id for request in saved.history.requests] == ["0", "1", "2", "3"]
    assert run.editor.edits_seen == 4
    for name, weight in saved.weights(saved.load_base()).items():
        torch.testing.assert_close(weight, run.live[name], rtol=0, atol=1e-5)


def test_an_edit_taken_out_is_taken_out_of_the_last_batch_too(fit, failing):
    failing([3])
    run = fit(method="MEMIT", retry=1)
    failing([])
    without = fit("plain", method="MEMIT", retry=1)
    saved, plain = SavedRun.open(run.folder), SavedRun.open(without.folder)
    solved = solve_without(saved, saved.load_base(), ["3"], 3)
    expected = solve_without(plain, plain.load_base(), ["3"], 2)
    for name, weight in expected.items():
        torch.testing.assert_close(solved[name], weight, rtol=1e-3, atol=2e-5)


def test_a_run_in_which_nothing_failed_is_the_one_without(fit, failing):
    failing([])
    again, plain = fit("again", retry=2), fit("plain")
    assert len(again.lines) == len(plain.lines)
    assert all(torch.equal(again.live[name], weight) for name, weight in plain.live.items())


def test_failed_edits_are_those_that_neither_way_of_asking_finds_right(fit):
    editor = fit().editor
    missed = [
        p for p, each in enumerate(editor.scores.ask_batch(editor.lm, editor.requests, range(4))) if not each.right
    ]
    assert set(editor.failing()) <= set(missed)
    assert editor.failing() == sorted(editor.failing())


def test_what_is_edited_again_is_settled_once(requests):
    loader = EditLoader(requests, 2, retry=3)
    loader.failing = lambda: [0, 2, 3, 1]
    batches = list(loader)
    assert len(batches) == len(loader) == 4
    assert [batch.places for batch in batches] == [(0, 1), (2, 3), (0, 2), (3,)]
    assert [batch.edits for batch in batches] == [2, 4, 4, 4]
    resumed = EditLoader(requests, 2, retry=3)
    resumed.load_state_dict(loader.state_dict() | {"done": 3})
    resumed.failing = lambda: pytest.fail("asked again")
    assert [batch.places for batch in resumed] == [(3,)]


def test_too_few_failures_leave_empty_batches(requests):
    loader = EditLoader(requests[:2], 2, retry=3)
    loader.failing = lambda: [1]
    assert [len(batch.requests) for batch in loader] == [2, 1, 0]


@pytest.mark.parametrize(("share", "count"), [(0.5, 2), (0.3, 1), (0.25, 1), (0.2, 0), (0.0, 0), (1, 1)])
def test_below_one_it_is_a_share_of_the_edits_rounded_down(requests, share, count):
    loader = EditLoader(requests, 1, retry=share)
    loader.failing = lambda: [3, 1, 2, 0]
    assert [batch.places for batch in loader][len(requests) :] == [(3,), (1,)][:count]
    assert len(loader) == len(requests) + count


def test_a_share_is_the_number_that_a_reader_takes_it_for(requests):
    assert EditLoader([requests[0]] * 100, 10, retry=0.29).retry == 29  # 0.29 * 100 is 28.999999999999996


@pytest.mark.parametrize("wrong", ["-1", "1.5"])
def test_what_is_no_number_of_edits_and_no_share_is_refused(command_line, tmp_path, wrong):
    status, _, err = command_line("fit", f"--retry={wrong}", f"--run_dir={tmp_path / 'run'}")
    assert status != 0
    assert f"--retry={wrong} must be at least 0" in err
    assert UserError.__name__ not in err
