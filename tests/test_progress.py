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
