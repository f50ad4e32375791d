import io
from types import SimpleNamespace

import pytest

from sphere_pl.progress import EditProgress, _Clock


@pytest.fixture
def time(monkeypatch):
    now = {"t": 0.0}
    monkeypatch.setattr("time.monotonic", lambda: now["t"])
    return now


def test_the_time_left_is_right_when_editing_is_linear_and_validation_quadratic(time):
    """Each batch of 10 takes 10 s; a validation over n edits takes n / 10 s, every 20 edits, up to 200."""
    clock, total = _Clock(), 200
    clock.start(0, total, every=20)
    shown = {}
    for done in range(10, total + 1, 10):
        time["t"] += 10
        if done % 20 == 0:
            clock.validating()
            time["t"] += done / 10
            clock.validated(done)
        shown[done] = (time["t"], clock.seconds_left(done))
    end = time["t"]
    for done in (40, 100, 180):
        at, left = shown[done]
        assert left == pytest.approx(end - at, rel=0.2)
    assert shown[total][1] is None


def test_nothing_is_promised_before_the_first_batch(time):
    clock = _Clock()
    clock.start(0, 100)
    assert clock.left(0) == ""


def test_a_phase_hands_every_item_through(capsys):
    assert list(EditProgress(quiet=True).phase(range(5), "work", 5)) == list(range(5))
    assert capsys.readouterr().err == ""


# A default run (100 edits, 10 a batch, a validation every 20): seconds of the pass over the unedited model, of each
# batch and of each validation. CPU seconds of its one thread, and wall time on a machine that others made busy.
RECORDED = {
    "cpu": (17.1, [18.9, 19.7, 20.1, 17.7, 15.2, 14.6, 18.4, 18.4, 18.4, 17.0], [10.2, 13.1, 17.1, 21.0, 24.5]),
    "wall": (
        103.0,
        [134.2, 103.7, 102.8, 115.5, 92.8, 73.8, 121.9, 174.3, 142.7, 118.8],
        [58.6, 81.7, 147.2, 195.8, 135.3],
    ),
}


def replay(time, unedited, batches, validations):
    """Play recorded times through the estimator; yields edits, seconds left as shown, seconds left in truth."""
    clock, total, end = _Clock(), 10 * len(batches), sum(batches) + sum(validations)
    clock.start(0, total, every=20)
    clock.scored(unedited, total)
    for place, seconds in enumerate(batches):
        done = 10 * (place + 1)
        time["t"] += seconds
        yield done, clock.seconds_left(done), end - time["t"]
        if done % 20 == 0:
            clock.validating()
            time["t"] += validations[done // 20 - 1]
            clock.validated(done)


def test_the_time_left_of_a_recorded_run_is_right_within_a_fifth_from_a_tenth_of_it_on(time):
    for done, shown, true in replay(time, *RECORDED["cpu"]):
        assert shown == pytest.approx(true, rel=0.2), f"after {done} edits"


def test_a_busy_machine_is_not_mistaken_for_a_short_run(time):
    done, shown, true = next(replay(time, *RECORDED["wall"]))
    assert done == 10
    assert shown == pytest.approx(true, rel=0.2)


def test_without_a_validation_to_come_editing_alone_counts(time):
    clock = _Clock()
    clock.start(0, 100)
    clock.scored(50.0, 100)
    time["t"] += 10
    assert clock.seconds_left(10) == pytest.approx(90)


def test_a_validation_of_a_sample_costs_no_more_than_the_sample_but_for_the_last(time):
    clock = _Clock()
    clock.start(0, 100, every=20, most=30)
    clock.scored(1.0, 1)
    time["t"] += 10
    assert clock.seconds_left(10) == pytest.approx(90 + 20 + 30 + 30 + 30 + 100)


def test_a_resumed_run_counts_from_where_it_goes_on(time):
    clock = _Clock()
    clock.start(60, 100, every=20)
    time["t"] += 10
    clock.scored(1.0, 1)
    assert clock.seconds_left(70) == pytest.approx(30 + 80 + 100)


class Terminal(io.StringIO):
    """A screen."""

    def isatty(self):
        return True


def shown(monkeypatch, stream, quiet=False):
    """What is written while two batches are edited and validated."""
    monkeypatch.setattr("sys.stderr", stream)
    progress = EditProgress(quiet=quiet)
    trainer = SimpleNamespace(
        train_dataloader=SimpleNamespace(batch_size=10),
        val_check_batch=1,
        callback_metrics={"val/efficacy": 0.5},
        num_training_batches=2,
        is_global_zero=True,
    )
    module = SimpleNamespace(
        requests=[None] * 20, edits_seen=0, evaluation=SimpleNamespace(batch_size=5, validation_records=None)
    )
    progress.setup(trainer, module, "fit")
    list(progress.phase(range(3), "second moments", 3))
    for module.edits_seen in (10, 20):
        progress.on_train_batch_start(trainer, module, None, 0)
        progress.on_train_batch_end(trainer, module, None, None, 0)
        progress.on_validation_start(trainer, module)
        progress.on_validation_batch_end(trainer, module, None, None, 0)
        if isinstance(stream, Terminal):
            progress._progress.refresh()
        progress.on_validation_end(trainer, module)
    progress.on_train_end(trainer, module)
    return stream.getvalue()


def test_a_terminal_sees_nested_bars(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    text = shown(monkeypatch, Terminal())
    assert all(word in text for word in ("second moments", "editing", "validation", "20/20"))
    assert "0:00:00 elapsed, about 0:00:00 left" in text  # after half of the edits


def test_without_a_terminal_there_is_a_plain_line_a_validation(monkeypatch):
    text = shown(monkeypatch, io.StringIO())
    assert text.splitlines()[0] == "second moments ..."
    assert len(text.splitlines()) == 3
    assert text.splitlines()[-1].startswith("20/20 edits")
    assert "\x1b" not in text


def test_the_load_of_the_model_is_said_before_it_begins(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    progress = EditProgress()
    progress.setup(SimpleNamespace(is_global_zero=True), SimpleNamespace(name="some/model[1]", lm=None), "fit")
    assert stream.getvalue() == "loading some/model[1] ...\n"
    assert progress._progress.tasks
    progress.on_fit_start(None, None)
    assert not progress._progress.tasks
    progress.close()


def test_quiet_shows_nothing(monkeypatch):
    assert shown(monkeypatch, io.StringIO(), quiet=True) == ""
