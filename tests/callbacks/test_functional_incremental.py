import math

import pytest
import torch

from sphere_callbacks.functional import (
    EnergyTracker,
    energy_of_gram,
    energy_statistics,
    gram_matrix,
    hyperspherical_energy,
    low_rank_factors,
    updated_gram,
)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("block_size", [1, 4, 100])
def test_gram_matrix_equals_the_product_in_one_piece(block_size):
    weight = draw(9, 5)
    torch.testing.assert_close(gram_matrix(weight, torch.float64, block_size), weight @ weight.T)


def test_updated_gram_equals_that_of_the_updated_weight():
    weight, A, B = draw(9, 20), draw(9, 3, seed=1), draw(3, 20, seed=2)
    after = weight + A @ B
    torch.testing.assert_close(updated_gram(weight @ weight.T, weight, A, B), after @ after.T)


@pytest.mark.parametrize("s", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("block_size", [1, 4, 100])
def test_energy_of_gram_equals_the_energy_of_the_rows(s, block_size):
    weight = draw(9, 5)
    weight[3] = 0
    weight[7] = 2 * weight[1]
    found = energy_of_gram(weight @ weight.T, s, block_size=block_size)
    for got, expected in zip(found, energy_statistics(weight, s), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
def test_low_rank_factors_recover_a_matrix_of_the_rank_they_were_given(shape):
    change = draw(shape[0], 4) @ draw(4, shape[1], seed=1)
    found = low_rank_factors(change, rank=4)
    assert found.left.shape == (shape[0], 12)
    torch.testing.assert_close(found.left @ found.right, change)
    assert float(found.residual) < 1e-10


def test_low_rank_factors_report_what_they_miss():
    change = draw(30, 40)
    found = low_rank_factors(change, rank=4)
    torch.testing.assert_close(found.residual, (change - found.left @ found.right).norm(), rtol=1 / 3, atol=0)
    assert float(found.residual) > 1


def test_tracker_follows_many_low_rank_updates_and_reports_its_drift():
    weight = draw(30, 60, dtype=torch.float32)
    tracker = EnergyTracker(weight, refresh_every=10)
    for step in range(25):
        change = 0.05 * draw(30, 2, seed=2 * step) @ draw(2, 60, seed=2 * step + 1)
        weight = weight + change.float()
        tracker.follow(weight, rank=2)
        expected = hyperspherical_energy(weight.double())
        assert float(tracker.statistics().energy) == pytest.approx(float(expected), rel=1e-6)
    assert tracker.exact == 3  # the start and two refreshes
    assert 0 < tracker.drift < 1e-6


def test_tracker_given_the_factors_needs_no_search():
    weight, A, B = draw(12, 20), draw(12, 2, seed=1), draw(2, 20, seed=2)
    tracker = EnergyTracker(weight)
    tracker.update(A, B)
    torch.testing.assert_close(tracker.statistics().energy, hyperspherical_energy(weight + A @ B))
    assert math.isnan(tracker.drift)


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_tracker_falls_back_to_exact_when_the_change_has_a_higher_rank(scale):
    weight = draw(30, 60, dtype=torch.float32)
    tracker = EnergyTracker(weight)
    weight = weight + scale * draw(30, 60, seed=1, dtype=torch.float32)
    tracker.follow(weight, rank=2)
    assert tracker.exact == 2
    assert float(tracker.statistics().energy) == pytest.approx(float(hyperspherical_energy(weight.double())), rel=1e-12)


def test_tracker_does_not_share_memory_with_the_weight():
    weight = draw(5, 6)
    tracker = EnergyTracker(weight)
    weight.zero_()
    assert float(tracker.weight.norm()) > 0


def test_tracker_turns_to_nan_with_the_weight():
    weight = draw(5, 6)
    tracker = EnergyTracker(weight)
    weight = weight.clone()
    weight[0, 0] = math.nan
    tracker.follow(weight, rank=2)
    found = tracker.statistics()
    assert math.isnan(found.energy)
    assert int(found.non_finite_rows) == 1


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`rank` must be at least 1, got 0"):
        low_rank_factors(torch.eye(3), 0)
    with pytest.raises(ValueError, match="`refresh_every` must be at least 1, got 0"):
        EnergyTracker(torch.eye(3), refresh_every=0)
    with pytest.raises(TypeError, match=r"torch\.int64"):
        EnergyTracker(torch.eye(3, dtype=torch.int64))
