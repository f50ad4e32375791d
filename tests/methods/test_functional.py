"""Closed forms against slow transcriptions of the papers' formulas in float64."""

import pytest
import torch

from sphere_pl.methods import EMMET, FT, MEMIT, ROME, AlphaEdit, KnownProblem, LocFTBF, UltraEdit
from sphere_pl.methods.functional import (
    Moments,
    alphaedit_update,
    emmet_update,
    memit_update,
    moment_factor,
    null_space_basis,
    rome_update,
    room_of_taken_keys,
    spread_residual,
    ultraedit_update,
)
from sphere_pl.methods.memory import KeyMemory

N, D_IN, D_OUT = 5, 24, 10


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    spread = normal(D_IN, D_IN)
    scales = torch.logspace(-3, 1, D_IN, dtype=torch.float64)
    q, _ = torch.linalg.qr(spread)
    return {
        "keys": normal(N, D_IN),
        "residuals": normal(N, D_OUT),
        "past_keys": normal(7, D_IN),
        "second_moment": q * scales @ q.T,
        "weight": normal(D_OUT, D_IN),
    }


def keys_alone(keys):
    """What a method remembers of a batch."""
    return KnownProblem(keys, keys.new_zeros(len(keys), D_OUT))


def literal_alphaedit(keys, residuals, second_moment, past_keys, threshold, ridge):
    """Δ from `[P (K Kᵀ + M) + λ I] Δᵀ = P K Rᵀ`, P from a full singular value decomposition."""
    u, s, _ = torch.linalg.svd(second_moment)
    p = u[:, s < threshold] @ u[:, s < threshold].T
    k, m = keys.T, past_keys.T @ past_keys
    return torch.linalg.solve(p @ (k @ k.T + m) + ridge * torch.eye(D_IN, dtype=k.dtype), p @ k @ residuals).T


def literal_memit(keys, residuals, weighted):
    k = keys.T
    return residuals.T @ torch.linalg.solve(weighted + k @ k.T, k).T


@pytest.mark.parametrize("ridge", [0.1, 10.0])
def test_alphaedit_in_the_null_space_is_the_literal_solve(problem, ridge):
    basis = null_space_basis(problem["second_moment"], 0.1)
    assert 0 < basis.shape[1] < D_IN
    past = KeyMemory.empty(basis.new_tensor(1 / ridge), basis.shape[1]).extend(problem["past_keys"] @ basis)
    found = alphaedit_update(problem["keys"], problem["residuals"], basis, past)
    expected = literal_alphaedit(
        problem["keys"], problem["residuals"], problem["second_moment"], problem["past_keys"], 0.1, ridge
    )
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_alphaedit_leaves_keys_outside_the_null_space_where_they_are(problem):
    values, vectors = torch.linalg.eigh(problem["second_moment"])
    known = vectors[:, values >= 0.1].T
    basis = null_space_basis(problem["second_moment"], 0.1)
    past = KeyMemory.empty(basis.new_tensor(1.0), basis.shape[1])
    update = alphaedit_update(problem["keys"], problem["residuals"], basis, past)
    torch.testing.assert_close(known @ update.T, torch.zeros(len(known), D_OUT, dtype=torch.float64))


def test_one_massive_direction_does_not_blur_the_null_space():
    torch.manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(200, 200, dtype=torch.float64))[0]
    moment = (vectors * torch.logspace(-3, 0, 200, dtype=torch.float64)) @ vectors.T
    massive = torch.nn.functional.normalize(torch.randn(200, dtype=torch.float64), dim=0)
    moment = (moment + 1e4 * massive.outer(massive)).float()

    def projector(basis):
        return basis.double() @ basis.double().T

    values, exact = torch.linalg.eigh(moment.double())
    expected = projector(exact[:, values < 0.02])
    values, plain = torch.linalg.eigh(moment)
    assert (projector(plain[:, values < 0.02]) - expected).norm() > 0.02 * expected.norm()
    assert (projector(null_space_basis(moment, 0.02)) - expected).norm() < 0.002 * expected.norm()


def test_memit_by_woodbury_is_the_literal_solve(problem):
    weighted = 3.0 * problem["second_moment"]
    whitened = torch.linalg.solve(weighted, problem["keys"].T).T
    found = memit_update(problem["keys"], problem["residuals"], whitened)
    expected = literal_memit(problem["keys"], problem["residuals"], weighted)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_the_classes_keep_the_past_as_their_formulas_say(problem):
    first, second = problem["past_keys"], problem["keys"]
    alphaedit, memit = AlphaEdit(2.0, 0.1), MEMIT(3.0, remember_past=True)
    moment, residuals = problem["second_moment"], problem["residuals"]
    state = alphaedit.remember(keys_alone(first), alphaedit.initial_state(problem["weight"], moment))
    expected = literal_alphaedit(second, residuals, moment, first, 0.1, 2.0)
    torch.testing.assert_close(alphaedit.update(KnownProblem(second, residuals), state), expected, rtol=1e-8, atol=1e-8)
    state = memit.remember(keys_alone(first), memit.initial_state(problem["weight"], moment))
    weighted = 3.0 * (moment + 1e-6 * moment.diagonal().mean() * torch.eye(D_IN))
    expected = literal_memit(second, residuals, weighted + first.T @ first)
    torch.testing.assert_close(memit.update(KnownProblem(second, residuals), state), expected, rtol=1e-8, atol=1e-8)


def jittered(moment):
    return moment + 1e-6 * moment.diagonal().mean() * torch.eye(D_IN)


@pytest.mark.parametrize("taken", [1, 3])
def test_a_key_that_earlier_ones_have_taken_is_solved_as_if_it_came_first(taken):
    torch.manual_seed(0)
    key, other = torch.randn(1, D_IN, dtype=torch.float64), torch.randn(2, D_IN, dtype=torch.float64)
    residual = torch.randn(1, 3, dtype=torch.float64)
    empty = KeyMemory.empty(torch.tensor(0.1, dtype=torch.float64), D_IN).extend(other)
    full = empty.extend(key.expand(taken, -1))
    rows = torch.cat([key, key.expand(taken, -1)])
    weights = room_of_taken_keys(full.overlap(rows), torch.ones(1, taken, dtype=torch.bool))
    root = weights.sqrt()[:, None]
    literal = residual.T @ key @ torch.linalg.inv(10 * torch.eye(D_IN) + other.T @ other + key.T @ key)
    assert torch.allclose(memit_update(root * key, root * residual, full.whiten(root * key)), literal)
    held_back = memit_update(key, residual, full.whiten(key))
    assert (held_back @ key.T).norm() < 0.7 * (literal @ key.T).norm()


def test_keys_that_are_no_numbers_are_left_to_the_solve_to_find_out():
    overlap = torch.full((2, 2), torch.nan)
    assert torch.equal(room_of_taken_keys(overlap, torch.tensor([[True]])), torch.ones(1))


def test_a_key_in_nobodys_way_counts_once_and_one_that_drifted_has_a_bound():
    torch.manual_seed(0)
    keys = torch.randn(3, D_IN)
    memory = KeyMemory.empty(torch.tensor(100.0), D_IN).extend(keys[2:] + 0.01 * torch.randn(1, D_IN))
    weights = room_of_taken_keys(memory.overlap(keys), torch.tensor([[False], [True]]))
    assert weights[0] == 1
    assert 1 <= weights[1] <= 100


@pytest.mark.parametrize("whiten", [True, False])
def test_rome_is_its_formula(problem, whiten):
    rome = ROME(whiten)
    assert rome.needs_second_moment is whiten
    k, r, moment = problem["keys"][0], problem["residuals"][0], problem["second_moment"]
    u = torch.linalg.inv(jittered(moment)) @ k if whiten else k
    expected = torch.outer(r, u) / torch.dot(u, k)
    found = rome.update(
        KnownProblem(k[None], r[None]), rome.initial_state(problem["weight"], moment if whiten else None)
    )
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found @ k, r)
    torch.testing.assert_close(rome_update(k[None], r[None], 7.0 * u[None]), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_emmet_is_its_formula(problem, ridge):
    emmet = EMMET(ridge)
    k, r, moment = problem["keys"].T, problem["residuals"].T, problem["second_moment"]
    inverse = torch.linalg.inv(jittered(moment))
    system = k.T @ inverse @ k
    system = system + ridge * system.diagonal().mean() * torch.eye(N)
    expected = r @ torch.linalg.inv(system) @ k.T @ inverse
    found = emmet.update(KnownProblem(k.T, r.T), emmet.initial_state(problem["weight"], moment))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    if ridge == 0:
        torch.testing.assert_close(found @ k, r)  # the constraint holds exactly


def test_emmet_of_one_edit_is_rome(problem):
    k, r = problem["keys"][:1], problem["residuals"][:1]
    u = torch.linalg.solve(problem["second_moment"], k.T).T
    torch.testing.assert_close(emmet_update(k, r, u, 0.0), rome_update(k, r, u), rtol=1e-8, atol=1e-8)


def test_plain_memit_has_nothing_to_save_and_sequential_memit_all_it_remembers(problem):
    assert MEMIT().saved == frozenset()
    state = MEMIT(remember_past=True).initial_state(problem["weight"], problem["second_moment"])
    assert MEMIT(remember_past=True).saved == set(state)


def test_two_edits_with_one_key_do_not_break_emmet(problem):
    keys = problem["keys"][[0, 0, 1]]
    whitened = torch.linalg.solve(problem["second_moment"], keys.T).T
    update = emmet_update(keys, problem["residuals"][:3], whitened, 1e-4)
    expected = problem["residuals"][:2].mean(0)
    torch.testing.assert_close(update @ keys[0], expected, rtol=1e-3, atol=1e-3)


def literal_ultraedit(keys, gradients, all_tokens, learning_rate):
    """`Δᵀ = (HᵀH + I)⁻¹ Hᵀ V`, `v = -η ‖ĥ‖² ĝ`, the moments from all tokens at once."""
    normalized = (torch.cat([keys, gradients], 1) - all_tokens.mean(0)) / all_tokens.std(0)
    h, g = normalized[:, :D_IN], normalized[:, D_IN:]
    values = torch.stack([-learning_rate * (a @ a) * b for a, b in zip(h, g, strict=True)])
    return (torch.linalg.inv(keys.T @ keys + torch.eye(D_IN)) @ keys.T @ values).T


class Tokens:
    """A problem that only shows features."""

    def __init__(self, keys, gradients, weight):
        self.keys, self.gradients, self.weight = keys, gradients, weight

    def features(self):
        return self.keys, self.gradients


@pytest.mark.parametrize("t", [6, 3 * D_IN])  # both sides of the choice of system
def test_ultraedit_is_its_formula_over_the_whole_stream(problem, t):
    generator = torch.Generator().manual_seed(1)
    batches = [
        (
            3 * torch.randn(t, D_IN, generator=generator).double() + 1,
            torch.randn(t, D_OUT, generator=generator).double(),
        )
        for _ in range(3)
    ]
    method = UltraEdit(0.3)
    state = method.initial_state(problem["weight"], None)
    for i, (keys, gradients) in enumerate(batches):
        seen = torch.cat([torch.cat(batch, 1) for batch in batches[: i + 1]])
        batch = Tokens(keys, gradients, problem["weight"])
        found = method.update(batch, state)
        torch.testing.assert_close(found, literal_ultraedit(keys, gradients, seen, 0.3), rtol=1e-8, atol=1e-8)
        state = method.remember(batch, state)
    assert set(state) == method.saved


def test_a_feature_that_never_changes_asks_for_nothing():
    rows = torch.tensor([[1.0, 2.0, 5.0], [3.0, 2.0, 5.0]], dtype=torch.float64)
    zeros = torch.zeros(3, dtype=torch.float64)
    moments = Moments(zeros.sum(), zeros, zeros).merge(rows)
    torch.testing.assert_close(moments.normalize(rows)[:, 1:], torch.zeros(2, 2, dtype=torch.float64))
    assert ultraedit_update(rows[:, :2], rows[:, 2:], moments, 1.0).abs().sum() == 0


def test_plain_memit_forgets_earlier_batches(problem):
    memit = MEMIT(3.0)
    state = memit.initial_state(problem["weight"], problem["second_moment"])
    assert memit.remember(keys_alone(problem["keys"]), state) is state


def test_the_shares_of_a_residual_add_up_when_each_layer_achieves_its_own():
    residual, achieved = torch.tensor([12.0]), torch.zeros(1)
    for left in (3, 2, 1):
        achieved = achieved + spread_residual(residual - achieved, left)
    assert achieved == residual


@pytest.mark.parametrize("method", [AlphaEdit(), MEMIT(), ROME(), EMMET()])
def test_a_method_says_that_it_needs_the_second_moment(method, problem):
    with pytest.raises(ValueError, match="needs the second moment"):
        method.initial_state(problem["weight"], None)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: AlphaEdit(ridge=0.0), "ridge=0.0"),
        (lambda: AlphaEdit(null_space_threshold=-1.0), "null_space_threshold"),
        (lambda: MEMIT(second_moment_weight=0.0), "second_moment_weight"),
        (lambda: EMMET(ridge=-1.0), "ridge=-1.0"),
        (lambda: UltraEdit(learning_rate=0.0), "learning_rate=0.0"),
        (lambda: FT(learning_rate=0.0), r"FT\(learning_rate=0.0"),
        (lambda: FT(norm_constraint=0.0), "norm_constraint=0.0"),
        (lambda: FT(stop_loss=-1.0), "stop_loss=-1.0"),
        (lambda: LocFTBF(epochs=0), r"LocFTBF\(epochs=0"),
        (lambda: LocFTBF(batch_size=0), "batch_size=0"),
        (lambda: AlphaEdit(null_space_threshold=1e-9).initial_state(torch.ones(2, 2), torch.eye(2)), "no direction"),
    ],
)
def test_arguments_out_of_range_are_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_a_moment_whose_rounding_beside_a_massive_direction_is_below_zero_is_factored():
    generator = torch.Generator().manual_seed(0)
    vectors, _ = torch.linalg.qr(torch.randn(200, 200, dtype=torch.float64, generator=generator))
    eigenvalues = torch.zeros(200, dtype=torch.float64)
    eigenvalues[:50], eigenvalues[0] = 0.1, 1e6
    exact = (vectors * eigenvalues) @ vectors.T
    moment = exact - 0.02 * vectors[:, -1:] @ vectors[:, -1:].T  # float32 rounds by as much
    assert torch.linalg.cholesky_ex(moment + 1e-6 * moment.diagonal().mean() * torch.eye(200)).info.item()
    factor = moment_factor(moment.clone())
    assert float((factor @ factor.T - exact).abs().max()) < 0.05
    assert float(torch.cholesky_solve(vectors[:, -1:], factor).norm()) < 1 / (0.9e-6 * 1e6 / 200)
    assert torch.equal(factor, factor.tril())
