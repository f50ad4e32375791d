import os

import pytest

from benchmarks.soak import look, summary


def sample(edits, resident, seconds, files=10):
    return {"edits": edits, "resident_bytes": resident, "open_files": files, "processor_seconds": seconds}


def test_what_comes_before_the_200th_edit_does_not_count():
    found = summary([sample(20, 50, 0.0), sample(200, 100, 100.0), sample(400, 104, 300.0), sample(600, 105, 700.0)])
    assert found["memory_growth"] == pytest.approx(0.05)
    assert found["seconds_per_edit_early"] == pytest.approx(1.0)
    assert found["seconds_per_edit_late"] == pytest.approx(2.0)


def test_a_process_can_be_looked_at():
    seen = look(os.getpid())
    assert seen["resident_bytes"] > 10_000_000
    assert seen["open_files"] >= 3
    assert seen["processor_seconds"] > 0
