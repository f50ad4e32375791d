import pytest
import torch

from sphere_pl.methods import functional
from sphere_pl.methods.functional import null_space_basis
from sphere_pl.methods.large_spectrum import count_above, null_space_of_large, null_space_of_large_share

WIDTH, THRESHOLD = 400, 0.02


def moment_of(eigenvalues):
    generator = torch.Generator().manual_seed(1)
    vectors, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=generator))
    return ((vectors * eigenvalues) @ vectors.T).float(), vectors


def spectrum(above, massive=None):
    """Eigenvalues that fall steadily through the threshold, `above` of them over it."""
    eigenvalues = THRESHOLD * (torch.arange(WIDTH, dtype=torch.float64) - (above - 0.5)).mul(-0.03).exp()
    if massive is not None:
        eigenvalues[0] = massive
    return eigenvalues


@pytest.mark.parametrize("massive", [None, 1e3])
@pytest.mark.parametrize(("above", "iterates"), [(10, True), (150, False)])
def test_the_null_space_is_that_of_the_full_decomposition(above, iterates, massive, monkeypatch):
    monkeypatch.setattr("sphere_pl.methods.large_spectrum._MASSIVE", 8)
    if iterates:
        eigh = torch.linalg.eigh
        monkeypatch.setattr("torch.linalg.eigh", lambda a: eigh(a) if len(a) < WIDTH / 2 else pytest.fail("all found"))
    eigenvalues = spectrum(above, massive)
    moment, vectors = moment_of(eigenvalues)
    basis = null_space_of_large(moment, THRESHOLD)
    assert basis.shape == (WIDTH, WIDTH - above)
    torch.testing.assert_close(basis.T @ basis, torch.eye(WIDTH - above), atol=2e-5, rtol=0)
    held = torch.linalg.eigvalsh(basis.double().T @ ((vectors * eigenvalues) @ vectors.T) @ basis.double())
    assert held[-1] < 1.02 * THRESHOLD
    inside = (basis.double().T @ vectors).square().sum(0)  # the share of each direction that may be edited
    assert inside[eigenvalues > 2 * THRESHOLD].sum() < 1e-3
    assert inside[eigenvalues < THRESHOLD / 2].min() > 0.98


def test_fewer_tokens_than_dimensions_leave_the_rest_free():
    keys = torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(0))
    basis = null_space_of_large(keys.T @ keys / 30, THRESHOLD)
    assert basis.shape == (WIDTH, WIDTH - 30)
    assert (keys @ basis).abs().max() < 1e-3  # of entries about 1


def test_two_calls_find_the_same_bits_and_leave_the_random_generator_alone():
    moment, _ = moment_of(spectrum(10))
    state = torch.get_rng_state()
    assert torch.equal(null_space_of_large(moment, THRESHOLD), null_space_of_large(moment, THRESHOLD))
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_above_the_threshold_leaves_all_of_key_space():
    assert null_space_of_large(torch.eye(80) * 1e-3, THRESHOLD).shape == (80, 80)


@pytest.mark.parametrize("above", [0, 7, WIDTH])
def test_eigenvalues_are_counted_by_inertia(above):
    moment, _ = moment_of(torch.linspace(2, 3, WIDTH, dtype=torch.float64).where(torch.arange(WIDTH) < above, 1.0))
    assert count_above(moment, 1.5) == above


def test_wide_matrices_take_this_way_and_narrow_ones_do_not(monkeypatch):
    moment, _ = moment_of(spectrum(10))
    monkeypatch.setattr(functional, "null_space_of_large", lambda *_: "large")
    assert isinstance(null_space_basis(moment, THRESHOLD), torch.Tensor)
    monkeypatch.setattr(functional, "_LARGE", WIDTH)
    assert null_space_basis(moment, THRESHOLD) == "large"


@pytest.mark.parametrize("massive", [None, 5.0, 1e3, 1e5])
@pytest.mark.parametrize("above", [20, 100, 250])
def test_a_share_of_key_space_is_that_of_the_full_decomposition(above, massive, monkeypatch):
    monkeypatch.setattr("sphere_pl.methods.large_spectrum._MASSIVE", 8)
    eigenvalues = spectrum(above, massive)
    moment, vectors = moment_of(eigenvalues)
    basis = null_space_of_large_share(moment, WIDTH - above)
    assert basis.shape == (WIDTH, WIDTH - above)
    torch.testing.assert_close(basis.T @ basis, torch.eye(WIDTH - above), atol=2e-5, rtol=0)
    inside = (basis.double().T @ vectors).square().sum(0)
    assert inside[eigenvalues > 2 * THRESHOLD].sum() < 1e-2
    assert inside[eigenvalues < THRESHOLD / 2].min() > 0.97


def test_massive_directions_that_cannot_be_told_apart_end_the_cutting(monkeypatch):
    monkeypatch.setattr("sphere_pl.methods.large_spectrum._MASSIVE", 8)
    monkeypatch.setattr("sphere_pl.methods.large_spectrum._EXACT", 0.0)  # none is exact enough to be cut
    moment, _ = moment_of(spectrum(100, massive=1e5))
    assert null_space_of_large_share(moment, WIDTH - 100).shape == (WIDTH, WIDTH - 100)
