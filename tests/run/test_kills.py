"""The program that kills a run again and again, on a tiny model."""

import pytest

from benchmarks import kills
from benchmarks.tiny import tiny_arguments


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_like_the_undisturbed_one(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    kills.random.seed(0)
    arguments = [*tiny_arguments(tmp_path), "--data.limit=40", "--data.batch_size=2", "--checkpoints.max_overhead=1"]
    found = kills.measure(4, arguments, tmp_path)
    assert found["kills"]
    assert found["same_weights"]
    assert found["same_metrics"]
