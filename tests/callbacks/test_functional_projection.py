import pytest
import torch

from sphere_callbacks.functional import principal_directions, principal_share, project_out, project_out_both


def literal_directions(weight, ratio):
    """The published procedure as it stands: the d_in x d_in second moment, ascending eigenvalues, a counted share."""
    rows = weight / (weight.norm(dim=1, keepdim=True) + 1e-8)
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    total, taken, count = values.sum(), 0.0, 0
    for value in values.flip(0):
        taken, count = taken + value, count + 1
        if taken / total > ratio:
            break
    return vectors[:, -count:]


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.fixture(params=[(6, 15), (15, 6), (8, 8), (1, 5)], ids=str)
def weight(request):
    return draw(*request.param) * torch.linspace(2, 0.1, request.param[1], dtype=torch.float64)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.8, 0.99])
def test_directions_span_what_the_literal_eigendecomposition_finds(weight, ratio):
    found, expected = principal_directions(weight, ratio), literal_directions(weight, ratio)
    assert found.shape == expected.shape
    torch.testing.assert_close(found @ found.T, expected @ expected.T, rtol=0, atol=1e-10)


def test_projected_update_equals_the_literal_projector(weight):
    update, U = draw(*weight.shape, seed=1), literal_directions(weight, 0.5)
    expected = update @ (torch.eye(weight.shape[1], dtype=torch.float64) - 0.5 * U @ U.T)
    torch.testing.assert_close(project_out(update, principal_directions(weight, 0.5), 0.5), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_directions_are_orthonormal_when_one_direction_dominates(dtype, tolerance):
    weight = 100 * draw(20, 1) @ draw(1, 50, seed=1) + draw(20, 50, seed=2)
    U = principal_directions(weight.to(dtype), 0.99999)
    assert U.shape[1] > 3
    assert U.dtype == dtype
    torch.testing.assert_close(U.T @ U, torch.eye(U.shape[1], dtype=dtype), rtol=0, atol=tolerance)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_share_equal_to_the_ratio_takes_one_more_direction(transposed):
    # second moment diag(1/2, 1/4, 1/4): the first share is exactly one half
    weight = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    if transposed:  # four columns and still n < d
        weight = torch.cat([weight, torch.zeros(4, 4, dtype=torch.float64)], dim=1)
    assert principal_directions(weight, 0.5).shape[1] == 2
    assert principal_directions(weight, 0.49).shape[1] == 1
    assert principal_directions(weight, 0.0).shape[1] == 1


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_directions_never_outnumber_the_rank(shape):
    weight = draw(shape[0], 2) @ draw(2, shape[1], seed=1)
    assert principal_directions(weight, 1 - 1e-16).shape[1] == 2


def test_a_weight_of_zeros_has_no_directions_and_projects_nothing():
    U = principal_directions(torch.zeros(3, 5), 0.5)
    assert U.shape == (5, 0)
    update = torch.ones(3, 5)
    assert torch.equal(project_out(update, U, 1.0), update)


def test_zero_and_duplicate_rows_have_directions():
    weight = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.5, 0.0]])
    torch.testing.assert_close(principal_directions(weight, 0.5).abs(), torch.tensor([[1.0], [0.0], [0.0]]))


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_norm_identity_of_the_projection(weight, strength):
    update, U = draw(*weight.shape, seed=1), principal_directions(weight, 0.5)
    found = project_out(update, U, strength).square().sum()
    expected = update.square().sum() - (2 * strength - strength**2) * (update @ U).square().sum()
    torch.testing.assert_close(found, expected)


def test_a_hard_projection_leaves_nothing_in_the_directions_and_is_idempotent(weight):
    update, U = draw(*weight.shape, seed=1), principal_directions(weight, 0.5)
    once = project_out(update, U, 1.0)
    torch.testing.assert_close(once @ U, torch.zeros_like(once @ U), rtol=0, atol=1e-12)
    torch.testing.assert_close(project_out(once, U, 1.0), once)


def test_strength_zero_returns_the_very_update():
    update = draw(4, 6)
    assert project_out(update, principal_directions(draw(4, 6, seed=1), 0.5), 0.0) is update


def test_both_sides_cut_off_input_and_output_directions():
    update, weight = draw(5, 8), draw(5, 8, seed=1)
    U, V = principal_directions(weight, 0.5), principal_directions(weight.T, 0.5)
    found = project_out_both(update, U, V)
    expected = (torch.eye(5).double() - V @ V.T) @ update @ (torch.eye(8).double() - U @ U.T)
    torch.testing.assert_close(found, expected)


def test_half_precision_updates_are_projected_in_the_precision_of_the_directions():
    update, U = draw(4, 6).bfloat16(), principal_directions(draw(4, 6, seed=1).float(), 0.5)
    found = project_out(update, U, 0.5)
    assert torch.equal(found, project_out(update.float(), U, 0.5).bfloat16())


def test_share_of_a_random_update_is_about_chance():
    U = principal_directions(draw(30, 200), 0.3)
    share = principal_share(draw(400, 200, seed=1), U)
    assert float(share) == pytest.approx(U.shape[1] / 200, rel=0.05)


def test_share_of_an_update_of_zeros_is_zero():
    assert float(principal_share(torch.zeros(2, 3), torch.eye(3)[:, :1])) == 0


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_a_ratio_outside_its_range_is_refused(ratio):
    with pytest.raises(ValueError, match=f"got {ratio}"):
        principal_directions(torch.eye(3), ratio)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_outside_its_range_is_refused(strength):
    with pytest.raises(ValueError, match=f"got {strength}"):
        project_out(torch.eye(3), torch.eye(3), strength)


def test_integer_weights_are_refused():
    with pytest.raises(TypeError, match=r"torch\.int64"):
        principal_directions(torch.eye(3, dtype=torch.int64), 0.5)


def test_non_finite_weights_are_refused():
    with pytest.raises(ValueError, match="NaN or an infinity"):
        principal_directions(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), 0.5)


def test_a_transposed_basis_is_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\[2, 3\] and directions of shape \[2, 1\]"):
        project_out(torch.ones(2, 3), torch.ones(2, 1), 0.5)


@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_integer_updates_are_refused_and_not_cut_off(strength):
    with pytest.raises(TypeError, match=r"`update` must have a floating dtype, got torch\.int64.*`update\.float\(\)`"):
        project_out(torch.ones(2, 3, dtype=torch.int64), torch.eye(3)[:, :1], strength)
