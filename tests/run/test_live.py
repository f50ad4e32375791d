from types import SimpleNamespace

import pytest

from sphere_pl.run import live
from sphere_pl.run.live import LiveReport

TRAINER = SimpleNamespace(is_global_zero=True, sanity_checking=False)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,edits,val/efficacy\n0,10,0.9\n")
    return tmp_path


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for what writing a report takes."""
    now = SimpleNamespace(t=100.0, cost=0.0, written=[])

    def write(run_dir, live):
        now.t += now.cost
        now.written.append((run_dir, live))

    monkeypatch.setattr(live, "write_report", write)
    monkeypatch.setattr("time.monotonic", lambda: now.t)
    return now


def test_the_page_shows_the_run_so_far_and_loads_itself_again(folder):
    LiveReport(str(folder)).on_validation_end(TRAINER, None)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "90.0" in text
    assert "data-refresh" in text.split("<script")[0]


def test_an_interrupted_run_leaves_a_page_that_rests(folder):
    report = LiveReport(str(folder))
    report.on_validation_end(TRAINER, None)
    report.on_exception(TRAINER, None, KeyboardInterrupt())
    text = (folder / "report.html").read_text(encoding="utf-8").split("<script")[0]
    assert "stopped" in text
    assert "data-refresh" not in text


def test_it_is_written_at_most_every_so_many_seconds(folder, clock):
    report = LiveReport(str(folder), every=10.0)
    for _ in range(100):
        report.on_train_batch_start(TRAINER, None)
        clock.t += 1.0
    assert len(clock.written) == 10


@pytest.mark.parametrize("cost", [0.05, 0.5, 5.0])
def test_it_takes_at_most_a_hundredth_of_the_time(folder, clock, cost):
    report, clock.cost, start = LiveReport(str(folder), every=0.0), cost, clock.t
    while clock.t < start + 10_000:
        report.on_validation_end(TRAINER, None)
        clock.t += 1.0
    assert cost * len(clock.written) <= 0.0101 * (clock.t - start)
    assert cost * len(clock.written) >= 0.005 * (clock.t - start)


def test_a_failure_is_said_once_and_the_run_goes_on(folder, monkeypatch, caplog):
    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr(live, "write_report", refuse)
    report = LiveReport(str(folder), every=0.0)
    for _ in range(3):
        report.on_validation_end(TRAINER, None)
        report._due = 0.0
    assert [record.message for record in caplog.records] == [
        "report.html could not be written while the run lasts: disk full"
    ]


def test_other_processes_and_sanity_checks_write_nothing(folder, clock):
    report = LiveReport(str(folder))
    report.on_validation_end(SimpleNamespace(is_global_zero=False, sanity_checking=False), None)
    report.on_validation_end(SimpleNamespace(is_global_zero=True, sanity_checking=True), None)
    assert clock.written == []
