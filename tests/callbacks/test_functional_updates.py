import math

import pytest
import torch

from sphere_callbacks.functional import relative_mask, restrain_spectrum, spectral_norm


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def literal_restraint(change, limit):
    """The published procedure: a full decomposition and every singular value through the restraint."""
    U, s, Vh = torch.linalg.svd(change, full_matrices=False)
    return U @ torch.diag(torch.where(s > limit, s.log() - math.log(limit) + limit, s)) @ Vh


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
@pytest.mark.parametrize("limit", [0.5, 2.0, 4.0])
def test_restraint_equals_the_full_decomposition(shape, limit):
    change = 3 * draw(*shape)
    torch.testing.assert_close(restrain_spectrum(change, limit), literal_restraint(change, limit))


def test_restraint_in_float32_survives_a_wide_spectrum():
    U, V = torch.linalg.qr(draw(20, 20))[0], torch.linalg.qr(draw(30, 20, seed=1))[0]
    change = U @ torch.diag(torch.logspace(4, -3, 20, dtype=torch.float64)) @ V.T
    found = restrain_spectrum(change.float(), 0.05).double()
    torch.testing.assert_close(found, literal_restraint(change, 0.05), rtol=0, atol=2e-3)


def test_a_change_within_the_limit_is_returned_as_it_is():
    change = draw(4, 6)
    assert restrain_spectrum(change, float(spectral_norm(change)) * 1.001) is change


def test_restraint_is_continuous_at_the_limit():
    change = draw(4, 6)
    limit = float(spectral_norm(change)) * (1 - 1e-9)
    torch.testing.assert_close(restrain_spectrum(change, limit), change, rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_spectral_norm_equals_the_largest_singular_value(shape):
    weight = draw(*shape)
    torch.testing.assert_close(spectral_norm(weight), torch.linalg.svdvals(weight)[0])


def test_restraint_refuses_a_limit_of_zero_and_a_nan():
    with pytest.raises(ValueError, match=r"got 0\.0"):
        restrain_spectrum(torch.eye(2), 0.0)
    with pytest.raises(ValueError, match="NaN or an infinity"):
        restrain_spectrum(torch.full((2, 2), math.nan), 1.0)


@pytest.mark.parametrize(("keep", "selected"), [(0.4, 41), (0.2, 21), (0.9, 91), (1.0, 100), (0.001, 2)])
def test_mask_selects_the_largest_relative_changes_and_the_threshold_itself(keep, selected):
    update, weight = draw(10, 10), draw(10, 10, seed=1)
    change = sorted(abs(float(u) / (float(w) + 1e-8)) for u, w in zip(update.flatten(), weight.flatten(), strict=True))
    mask = relative_mask(update, weight, keep)
    assert int(mask.sum()) == selected
    threshold = change[-selected]
    assert torch.equal(mask, (update / (weight + 1e-8)).abs() >= threshold - 1e-12)


def test_mask_is_finite_for_weights_of_zero():
    mask = relative_mask(torch.tensor([[1e-3, 1.0, 1.0, 1.0]]), torch.tensor([[0.0, 1.0, 2.0, 4.0]]), keep=0.25)
    assert mask.tolist() == [[True, True, False, False]]


def test_mask_of_equal_changes_keeps_them_all():
    assert relative_mask(torch.ones(2, 5), torch.ones(2, 5), 0.4).all()


@pytest.mark.parametrize("keep", [0.0, 1.1, math.nan])
def test_mask_refuses_a_share_outside_its_range(keep):
    with pytest.raises(ValueError, match=f"got {keep}"):
        relative_mask(torch.ones(2, 2), torch.ones(2, 2), keep)


def test_mask_refuses_shapes_that_differ():
    with pytest.raises(ValueError, match=r"\[2, 3\] and \[3, 2\]"):
        relative_mask(torch.ones(2, 3), torch.ones(3, 2))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_has_no_spectral_norm(bad):
    with pytest.raises(ValueError, match=r"`weight` \[2, 2\] has a NaN or an infinity"):
        spectral_norm(torch.tensor([[1.0, bad], [0.0, 1.0]]))
