import pytest
import torch

from sphere_pl.history.low_rank import Factors, compress, expand, rank_of


def matrix(rank, rows=40, columns=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, rank, generator=generator)
    return left @ torch.randn(rank, columns, generator=generator)


@pytest.mark.parametrize("expected", [1, 3, 7])
def test_factors_have_the_true_rank_whatever_was_expected(expected):
    change = matrix(3)
    factors = compress(change, expected, tolerance=1e-4)
    assert isinstance(factors, Factors)
    assert rank_of(factors) == 3
    torch.testing.assert_close(expand(factors), change, rtol=1e-4, atol=1e-4)


def test_rounding_noise_of_full_rank_is_left_out():
    weight = matrix(40) + 1
    change = (weight + 1e-3 * matrix(2, seed=1)) - weight
    tolerance = torch.finfo(torch.float32).eps * float(weight.norm())
    factors = compress(change, 2, tolerance)
    assert rank_of(factors) == 2
    assert float((expand(factors) - change).norm()) <= tolerance


def test_what_factors_would_not_shrink_stays_full_and_exact():
    change = matrix(40)
    assert compress(change, 2, tolerance=1e-4) is change
    assert rank_of(change) is None


def test_a_change_with_nan_is_kept_as_it_is():
    change = matrix(2)
    change[0, 0] = float("nan")
    assert compress(change, 2, tolerance=1e-4) is change


def test_the_runs_random_numbers_stay_what_they_are():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    compress(matrix(2), 2, tolerance=1e-4)
    assert torch.equal(torch.rand(3), expected)
