import math

import pytest
import torch

from sphere_callbacks.functional import energy_statistics, hyperspherical_energy, unit_rows


def naive_energy(weight, s):
    """The paper's double sum, pair by pair, in Python floats."""
    rows = [row / math.sqrt(sum(float(x) ** 2 for x in row)) for row in weight.double()]
    total = 0.0
    for i, left in enumerate(rows):
        for j, right in enumerate(rows):
            if i != j:
                distance = math.sqrt(float(((left - right) ** 2).sum()))
                total += -math.log(distance) if s == 0 else distance**-s
    return total


@pytest.fixture
def weight():
    return torch.randn(13, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.3


@pytest.mark.parametrize("s", [0.0, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("block_size", [1, 4, 5, 13, 1024])
def test_energy_equals_the_double_sum_for_every_order_and_block_size(weight, s, block_size):
    found = hyperspherical_energy(weight, s, block_size=block_size)
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(naive_energy(weight, s), rel=1e-12)


def test_energy_in_float32_is_close_to_the_double_sum(weight):
    assert float(hyperspherical_energy(weight.float())) == pytest.approx(naive_energy(weight, 2.0), rel=1e-5)


def test_per_pair_divides_by_the_ordered_pairs(weight):
    total = hyperspherical_energy(weight)
    torch.testing.assert_close(hyperspherical_energy(weight, per_pair=True), total / (13 * 12))


def test_energy_ignores_the_length_of_rows_even_when_their_squares_underflow(weight):
    scales = torch.logspace(-30, 15, 13, dtype=torch.float64).unsqueeze(1)
    found = hyperspherical_energy((weight * scales).float())
    torch.testing.assert_close(found, hyperspherical_energy(weight.float()), rtol=1e-5, atol=0)


def test_energy_gives_the_same_answer_whatever_precision_the_process_allows():
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    expected = hyperspherical_energy(weight)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(hyperspherical_energy(weight), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_half_precision_is_computed_in_float32(weight):
    half = weight.to(torch.bfloat16)
    assert torch.equal(hyperspherical_energy(half), hyperspherical_energy(half.float()))


def test_one_row_has_no_energy():
    assert float(hyperspherical_energy(torch.ones(1, 4))) == 0
    assert float(hyperspherical_energy(torch.ones(1, 4), per_pair=True)) == 0


def test_a_zero_row_counts_as_orthogonal_to_the_others():
    with_zero = hyperspherical_energy(torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0]]))
    torch.testing.assert_close(with_zero, hyperspherical_energy(torch.eye(3)))


@pytest.mark.parametrize("s", [0.0, 1.0, 2.0])
def test_duplicate_rows_give_a_finite_energy_set_by_eps(s):
    found = hyperspherical_energy(torch.tensor([[1.0, 2.0], [2.0, 4.0]], dtype=torch.float64), s, eps=1e-4)
    expected = 2 * (-math.log(1e-2) if s == 0 else 1e-2**-s)
    assert float(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("block_size", [2, 64])
def test_a_non_finite_entry_gives_nan_and_is_counted(weight, bad, block_size):
    weight[5, 2] = bad
    assert math.isnan(hyperspherical_energy(weight, block_size=block_size))
    assert int(energy_statistics(weight, block_size=block_size).non_finite_rows) == 1


@pytest.mark.parametrize("block_size", [1, 2, 64])
def test_statistics_count_each_kind_of_row_without_a_place_on_the_sphere(block_size):
    weight = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    weight[1] = 0
    weight[4] = 2 * weight[0]
    weight[8] = 3 * weight[0]
    weight[6, 0] = math.nan
    found = energy_statistics(weight, block_size=block_size)
    assert (int(found.zero_rows), int(found.duplicate_pairs), int(found.non_finite_rows)) == (1, 3, 1)


def test_statistics_agree_with_the_energy(weight):
    found = energy_statistics(weight, s=1.0)
    torch.testing.assert_close(found.energy, hyperspherical_energy(weight, 1.0))
    assert int(found.duplicate_pairs) == int(found.zero_rows) == int(found.non_finite_rows) == 0


def test_energy_leaves_the_weight_untouched(weight):
    before = weight.clone()
    hyperspherical_energy(weight)
    assert torch.equal(weight, before)


def test_energy_of_a_parameter_has_no_history(weight):
    assert not hyperspherical_energy(torch.nn.Parameter(weight)).requires_grad


def test_unit_rows_have_length_one(weight):
    torch.testing.assert_close(unit_rows(weight).norm(dim=1), torch.ones(13, dtype=torch.float64))


@pytest.mark.parametrize(
    ("weight", "options", "error", "message"),
    [
        (torch.ones(2, 2, dtype=torch.int8), {}, TypeError, "torch.int8"),
        (torch.ones(2, 2, dtype=torch.complex64), {}, TypeError, "floating dtype"),
        (torch.ones(4), {}, ValueError, r"shape \[4\]"),
        (torch.ones(2, 2), {"s": -1.0}, ValueError, "got -1.0"),
        (torch.ones(2, 2), {"s": math.nan}, ValueError, "got nan"),
        (torch.ones(2, 2), {"block_size": 0}, ValueError, "got 0"),
        (torch.ones(2, 2), {"eps": 0.0}, ValueError, "got 0.0"),
    ],
)
def test_bad_arguments_are_refused_with_what_was_given(weight, options, error, message):
    with pytest.raises(error, match=message):
        hyperspherical_energy(weight, **options)
