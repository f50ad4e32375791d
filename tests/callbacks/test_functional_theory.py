import math

import pytest
import torch

from sphere_callbacks.functional import (
    energy_constant,
    hyperspherical_energy,
    output_perturbation,
    perturbation_bound,
    row_cosines,
    subspace_overlap,
    unit_rows,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_constant(rows):
    """The slides' constant, row by row."""
    total = 0.0
    for k, left in enumerate(rows):
        total += sum(float((left - right).norm()) ** -3 for j, right in enumerate(rows) if j != k) ** 2
    return 4 * math.sqrt(total)


def raw_energy(rows):
    """Energy of rows that are not normalised, which is what the theorem's constant bounds."""
    distances = torch.cdist(rows, rows)
    return distances[~torch.eye(len(rows), dtype=torch.bool)].pow(-2).sum()


@pytest.mark.parametrize("block_size", [1, 3, 64])
def test_constant_equals_the_slides_formula(block_size):
    weight = draw(7, 5)
    assert float(energy_constant(weight, block_size=block_size)) == pytest.approx(naive_constant(weight), rel=1e-10)


def test_unit_constant_of_unit_rows_equals_the_raw_one():
    rows = unit_rows(draw(7, 5))
    torch.testing.assert_close(energy_constant(rows, rows="unit"), energy_constant(rows))


@pytest.mark.parametrize("s", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_unit_constant_bounds_the_change_of_hyperspherical_energy(s, seed):
    weight = draw(8, 6, seed=seed) * torch.linspace(0.2, 3.0, 8, dtype=torch.float64).unsqueeze(1)
    leaf = weight.clone().requires_grad_()
    rows = leaf / leaf.norm(dim=1, keepdim=True)
    distances = (rows.unsqueeze(0) - rows.unsqueeze(1)).square().sum(-1)[~torch.eye(8, dtype=torch.bool)].sqrt()
    (-distances.log() if s == 0 else distances.pow(-s)).sum().backward()
    change = 1e-5 * leaf.grad / leaf.grad.norm()  # the direction in which the energy moves fastest
    moved = hyperspherical_energy(weight + change, s, eps=1e-12) - hyperspherical_energy(weight, s, eps=1e-12)
    bound = perturbation_bound(weight, moved, s, rows="unit")
    assert 0 < float(bound.lower) <= float(output_perturbation(change)) * (1 + 1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_raw_constant_bounds_the_change_of_the_energy_of_raw_rows(seed):
    weight, change = draw(8, 6, seed=seed), 1e-5 * draw(8, 6, seed=seed + 50)
    bound = perturbation_bound(weight, raw_energy(weight + change) - raw_energy(weight))
    assert 0 < float(bound.lower) <= float(output_perturbation(change)) * (1 + 1e-3)


def test_bound_is_the_square_of_change_over_constant():
    found = perturbation_bound(draw(5, 4), -3.0)
    assert float(found.lower) == pytest.approx((3.0 / float(found.constant)) ** 2)


def test_a_single_row_bounds_nothing():
    found = perturbation_bound(torch.ones(1, 4), 1.0)
    assert float(found.constant) == float(found.lower) == 0


def test_duplicate_and_zero_rows_leave_the_constant_finite():
    weight = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert energy_constant(weight).isfinite()
    assert energy_constant(weight, rows="unit").isfinite()


def test_unknown_rows_are_refused():
    with pytest.raises(ValueError, match="got 'both'"):
        energy_constant(torch.eye(2), rows="both")


def test_output_perturbation_is_the_mean_squared_move_of_the_outputs():
    change, inputs = draw(4, 6), draw(50, 6, seed=1)
    expected = (inputs @ change.T).square().sum(dim=1).mean()
    torch.testing.assert_close(output_perturbation(change, inputs.T @ inputs / 50), expected)
    torch.testing.assert_close(output_perturbation(change), change.norm() ** 2)


def test_output_perturbation_refuses_a_moment_of_another_size():
    with pytest.raises(ValueError, match=r"\[3, 3\] to fit `change` \[2, 3\], got \[2, 2\]"):
        output_perturbation(torch.ones(2, 3), torch.eye(2))


def test_overlap_equals_the_mean_squared_cosine_of_the_principal_angles():
    U, V = torch.linalg.qr(draw(9, 3))[0], torch.linalg.qr(draw(9, 5, seed=1))[0]
    expected = torch.linalg.svdvals(U.T @ V).square().mean()
    torch.testing.assert_close(subspace_overlap(U, V), expected)
    torch.testing.assert_close(subspace_overlap(V, U), expected)


def test_overlap_does_not_depend_on_the_basis():
    U, turn = torch.linalg.qr(draw(9, 3))[0], torch.linalg.qr(draw(3, 3, seed=1))[0]
    assert float(subspace_overlap(U, U @ turn)) == pytest.approx(1.0)


def test_overlap_with_no_directions_is_nan():
    assert math.isnan(subspace_overlap(torch.zeros(4, 0), torch.eye(4)))


def test_overlap_refuses_spaces_of_different_dimension():
    with pytest.raises(ValueError, match=r"\[3, 3\] and \[4, 4\]"):
        subspace_overlap(torch.eye(3), torch.eye(4))


def test_row_cosines_equal_the_cosine_similarity_of_chosen_rows():
    weight, rows = draw(9, 5), torch.tensor([7, 0, 3])
    expected = torch.nn.functional.cosine_similarity(weight[rows].unsqueeze(1), weight[rows].unsqueeze(0), dim=-1)
    torch.testing.assert_close(row_cosines(weight, rows), expected)


@pytest.mark.parametrize(
    ("options", "words"), [({"s": -1.0}, "`s`"), ({"block_size": 0}, "`block_size`"), ({"eps": 0.0}, "`eps`")]
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        energy_constant(torch.eye(3), **options)


def test_overlap_of_bases_of_different_precision_is_that_in_the_wider_one():
    left, right = torch.eye(3, dtype=torch.bfloat16)[:, :2], torch.eye(3)[:, 1:]
    assert torch.equal(subspace_overlap(left, right), torch.tensor(0.5))
