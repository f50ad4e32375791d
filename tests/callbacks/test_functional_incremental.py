import math

import pytest
import torch

from sphere_callbacks.functional import (
    EnergyFollower,
    EnergyTracker,
    energy_of_changed_gram_,
    energy_of_gram,
    energy_statistics,
    gram_matrix,
    hyperspherical_energy,
    interpolated_factors,
    low_rank_factors,
    row_products,
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


@pytest.mark.parametrize("s", [0.0, 2.0])
def test_energy_of_gram_reads_the_upper_triangle_only(s):
    gram = draw(9, 5) @ draw(9, 5).T
    below = torch.ones_like(gram, dtype=torch.bool).tril(-1)
    expected = energy_of_gram(gram, s, block_size=1).energy
    torch.testing.assert_close(energy_of_gram(gram.masked_fill(below, math.nan), s, block_size=1).energy, expected)


@pytest.mark.parametrize("block_size", [1, 4, 100])
def test_the_energy_of_a_changed_gram_matrix_is_that_of_the_changed_rows(block_size):
    weight, A, B = draw(9, 20), draw(9, 3, seed=1), draw(3, 20, seed=2)
    gram, half = weight @ weight.T, weight @ B.T + A @ (B @ B.T) / 2
    found = energy_of_changed_gram_(gram, half, A, block_size=block_size)
    for got, expected in zip(found, energy_statistics(weight + A @ B), strict=True):
        torch.testing.assert_close(got, expected)
    after = (weight + A @ B) @ (weight + A @ B).T
    torch.testing.assert_close(gram.triu(), after.triu())


def test_row_products_round_the_factors_to_the_dtype_they_are_given():
    weight, right = draw(9, 30, dtype=torch.float32), draw(4, 30, seed=1, dtype=torch.float32)
    torch.testing.assert_close(row_products(weight, right, torch.float32, block_size=4), weight @ right.T)
    rounded = weight.bfloat16().double() @ right.bfloat16().double().T
    found = row_products(weight, right, torch.bfloat16, block_size=4)
    assert found.dtype == torch.float32
    assert float((found - rounded).norm() / rounded.norm()) < 2**-8  # the result is rounded as well


@pytest.mark.parametrize("find", [low_rank_factors, interpolated_factors])
@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (6, 200), (200, 6)])
def test_factors_recover_a_matrix_of_the_rank_they_were_given(find, shape):
    change = draw(shape[0], 4) @ draw(4, shape[1], seed=1)
    found = find(change, rank=4)
    assert found.left.shape == (shape[0], min(12, *shape))
    torch.testing.assert_close(found.left @ found.right, change)
    assert float(found.residual) < 1e-10


@pytest.mark.parametrize("find", [low_rank_factors, interpolated_factors])
def test_factors_report_what_they_miss(find):
    change = draw(30, 40)
    found = find(change, rank=4)
    torch.testing.assert_close(found.residual, (change - found.left @ found.right).norm(), rtol=1 / 3, atol=0)
    assert float(found.residual) > 1


@pytest.mark.parametrize("find", [low_rank_factors, interpolated_factors])
def test_factors_of_no_change_are_zero(find):
    found = find(torch.zeros(20, 30), rank=2)
    assert float((found.left @ found.right).norm()) == float(found.residual) == 0


def test_interpolated_factors_take_rows_of_the_matrix():
    change = draw(30, 5) @ draw(5, 40, seed=1)
    right = interpolated_factors(change, rank=5).right
    assert all((change == row).all(dim=1).any() for row in right)


def test_interpolated_factors_enlarge_rounding_errors_by_little():
    change = draw(400, 20) @ draw(20, 600, seed=1)
    noise = 1e-6 * draw(400, 600, seed=2)
    assert float(interpolated_factors(change + noise, rank=20).residual) < 5 * float(noise.norm())


@pytest.mark.parametrize("products", [None, torch.bfloat16])
def test_follower_tracks_many_low_rank_updates_and_reports_its_drift(products):
    weight = draw(30, 60, dtype=torch.float32)
    follower = EnergyFollower(weight, refresh_every=10, products=products)
    for step in range(25):
        change = 1e-3 * draw(30, 2, seed=2 * step) @ draw(2, 60, seed=2 * step + 1)
        weight = weight + change.float()
        follower.follow(weight, rank=2)
        expected = hyperspherical_energy(weight.double())
        assert float(follower.statistics().energy) == pytest.approx(float(expected), rel=1e-6)
    assert follower.exact == 3  # the start and two refreshes
    assert 0 < follower.drift < 1e-6


@pytest.mark.parametrize("products", [None, torch.bfloat16])
def test_tracker_drifts_little_over_a_hundred_updates_of_a_thousandth_of_the_norm(products):
    weight = draw(64, 200, dtype=torch.float32)
    start = hyperspherical_energy(weight.double())
    tracker = EnergyTracker(weight, refresh_every=100, products=products)
    for step in range(100):
        left = 1e-3 / 4**0.5 * draw(64, 4, seed=2 * step, dtype=torch.float32)
        right = draw(4, 200, seed=2 * step + 1, dtype=torch.float32)
        weight.addmm_(left, right)
        tracker.update(left, right, weight)
    assert tracker.exact == 2
    assert 0 < tracker.drift < 1e-6
    change = float(hyperspherical_energy(weight.double()) / start - 1)
    assert tracker.drift < 0.05 * abs(change)


def test_tracker_given_the_factors_follows_them():
    weight, A, B = draw(12, 20), draw(12, 2, seed=1), draw(2, 20, seed=2)
    tracker = EnergyTracker(weight)
    tracker.update(A, B, weight + A @ B)
    torch.testing.assert_close(tracker.statistics().energy, hyperspherical_energy(weight + A @ B))
    assert math.isnan(tracker.drift)


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_follower_falls_back_to_exact_when_the_change_has_a_higher_rank(scale):
    weight = draw(30, 60, dtype=torch.float32)
    follower = EnergyFollower(weight)
    weight = weight + scale * draw(30, 60, seed=1, dtype=torch.float32)
    follower.follow(weight, rank=2)
    assert follower.exact == 2
    found, expected = float(follower.statistics().energy), float(hyperspherical_energy(weight.double()))
    assert found == pytest.approx(expected, rel=1e-12)


def test_follower_finds_a_change_on_few_columns_that_no_sample_of_columns_shows():
    weight = draw(60, 4000, dtype=torch.float32)
    follower = EnergyFollower(weight)
    weight = weight.clone()
    weight[:, :3] += 0.1 * draw(60, 3, seed=1).float()
    follower.follow(weight, rank=3)
    assert follower.exact == 1
    found, expected = float(follower.statistics().energy), float(hyperspherical_energy(weight.double()))
    assert found == pytest.approx(expected, rel=1e-9)


def test_follower_does_not_share_memory_with_the_weight():
    weight = draw(5, 6)
    follower, start = EnergyFollower(weight), weight.clone()
    weight.mul_(draw(5, 6, seed=1))
    follower.follow(weight, rank=2)
    torch.testing.assert_close(follower.statistics().energy, hyperspherical_energy(weight))
    follower.follow(start, rank=2)
    torch.testing.assert_close(follower.statistics().energy, hyperspherical_energy(start))


def test_follower_turns_to_nan_with_the_weight():
    weight = draw(5, 6)
    follower = EnergyFollower(weight)
    weight = weight.clone()
    weight[0, 0] = math.nan
    follower.follow(weight, rank=2)
    found = follower.statistics()
    assert math.isnan(found.energy)
    assert int(found.non_finite_rows) == 1


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`rank` must be at least 1, got 0"):
        low_rank_factors(torch.eye(3), 0)
    with pytest.raises(ValueError, match="`rank` must be at least 1, got 0"):
        interpolated_factors(torch.eye(3), 0)
    with pytest.raises(ValueError, match="`refresh_every` must be at least 1, got 0"):
        EnergyTracker(torch.eye(3), refresh_every=0)
    with pytest.raises(TypeError, match=r"torch\.int64"):
        EnergyTracker(torch.eye(3, dtype=torch.int64))
