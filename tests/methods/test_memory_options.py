"""RLSEdit, EvoEdit's moving null space and SUIT's keys against slow transcriptions in float64."""

import pytest
import torch

from sphere_pl.errors import UserError
from sphere_pl.methods import MEMIT, AlphaEdit, KnownProblem
from sphere_pl.methods.memory import MovingNullSpace

D_IN, D_OUT, N = 24, 10, 4


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def moment():
    q, _ = torch.linalg.qr(normal(D_IN, D_IN, seed=7))
    return q * torch.logspace(-3, 1, D_IN, dtype=torch.float64) @ q.T


def stream(method, moment, batches=5):
    """Keys, wanted outputs and weights of a run whose keys do not depend on the weights; the last weights."""
    start = normal(D_OUT, D_IN, seed=1)
    weight, state, asked = start, method.initial_state(start, moment), []
    for batch in range(batches):
        keys, gains = normal(N, D_IN, seed=10 + batch), normal(N, D_OUT, seed=90 + batch)
        asked.append((keys, keys @ weight.T + gains))
        problem = KnownProblem(keys, gains, weight)
        weight = weight + method.update(problem, state)
        state = method.remember(problem, state)
    return start, asked, weight


def test_rlsedit_is_the_least_squares_solution_over_the_whole_stream(moment):
    """argmin over W of sum |W k - v|² + rho |W - W0|² + lambda |(W - W0) C^(1/2)|²."""
    start, asked, found = stream(MEMIT(3.0, remember_past=True, deviation_weight=2.0), moment)
    c = 3.0 * moment
    c = c + 2.0 * c.diagonal().mean() * torch.eye(D_IN, dtype=c.dtype)
    c = c + 1e-6 * c.diagonal().mean() * torch.eye(D_IN, dtype=c.dtype)  # as for every factor of a moment
    keys, values = (torch.cat(each) for each in zip(*asked, strict=True))
    expected = start + torch.linalg.solve(keys.T @ keys + c, keys.T @ (values - keys @ start.T)).T
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_a_weight_of_zero_is_sequential_memit_bit_for_bit(moment):
    plain, zero = (stream(MEMIT(3.0, True, **more), moment)[2] for more in ({}, {"deviation_weight": 0.0}))
    assert torch.equal(plain, zero)


def test_a_stronger_anchor_moves_the_weights_less(moment):
    moved = []
    for weight in (0.0, 1.0, 10.0):
        start, _, found = stream(MEMIT(3.0, True, deviation_weight=weight), moment)
        moved.append(float((found - start).norm()))
    assert moved[0] > moved[1] > moved[2] > 0


def test_evoedit_moves_the_output_at_no_earlier_key(moment):
    method, threshold = AlphaEdit(0.5, 0.5, null_space="moving"), 0.5
    start = normal(D_OUT, D_IN, seed=1)
    weight, state, seen = start, method.initial_state(start, moment), []
    u, s, _ = torch.linalg.svd(moment)
    projector = u[:, s < threshold] @ u[:, s < threshold].T
    for batch in range(3):
        keys, gains = normal(N, D_IN, seed=10 + batch), normal(N, D_OUT, seed=90 + batch)
        problem = KnownProblem(keys, gains, weight)
        update = method.update(problem, state)
        k = keys.T  # Δ = R Kᵀ P (P K Kᵀ P + λ I)⁻¹, P without the earlier keys
        inner = projector @ k @ k.T @ projector + 0.5 * torch.eye(D_IN, dtype=k.dtype)
        torch.testing.assert_close(update, gains.T @ k.T @ projector @ torch.linalg.inv(inner), rtol=1e-8, atol=1e-8)
        for earlier in seen:
            assert float((earlier @ update.T).abs().max()) < 1e-10
        state, weight = method.remember(problem, state), weight + update
        seen.append(keys @ projector)
        left = torch.linalg.qr((keys @ projector).T).Q
        projector = projector - left @ left.T


def test_a_key_that_earlier_ones_span_takes_no_direction():
    memory = MovingNullSpace.empty(torch.tensor(1.0), 8)
    keys = normal(3, 8).float()
    memory = memory.extend(keys)
    again = memory.extend(keys[:2] @ torch.eye(8) + keys[1:])
    assert len(memory.taken) == len(again.taken) == 3
    torch.testing.assert_close(memory.taken @ memory.taken.T, torch.eye(3))


def test_a_full_null_space_is_refused_by_name(moment):
    method = AlphaEdit(0.5, 0.5, null_space="moving")
    state = method.initial_state(normal(D_OUT, D_IN), moment)
    state = method.remember(KnownProblem(normal(D_IN, D_IN), normal(D_IN, D_OUT)), state)
    with pytest.raises(UserError, match="null_space=fixed"):
        method.update(KnownProblem(normal(N, D_IN), normal(N, D_OUT)), state)


def test_evoedit_resumes_bit_for_bit_from_what_was_saved(moment):
    method = AlphaEdit(0.5, 0.5, null_space="moving")
    start = normal(D_OUT, D_IN, seed=1)
    whole = method.remember(KnownProblem(normal(N, D_IN), normal(N, D_OUT)), method.initial_state(start, moment))
    resumed = {**method.initial_state(start, moment), **{name: whole[name].clone() for name in method.saved}}
    problem = KnownProblem(normal(N, D_IN, seed=2), normal(N, D_OUT, seed=3))
    assert torch.equal(method.update(problem, whole), method.update(problem, resumed))


def test_keys_that_are_no_numbers_are_found_out_by_the_next_solve():
    memory = MovingNullSpace.empty(torch.tensor(0.5), 6).extend(torch.full([2, 6], torch.nan))
    assert memory.whiten(torch.ones(1, 6)).isnan().all()


@pytest.mark.parametrize("arguments", [{}, {"deviation_weight": 0.5}])
def test_suits_keys_are_memit_in_what_subjects_do_not_share(moment, arguments):
    method = MEMIT(3.0, shared_directions=0.5, **arguments)
    keys, gains = normal(N, D_IN, seed=3), normal(N, D_OUT, seed=4)
    state = method.initial_state(normal(D_OUT, D_IN), moment)
    update = method.update(KnownProblem(keys, gains), state)
    values, vectors = torch.linalg.eigh(moment)
    count = next(c for c in range(1, D_IN) if values.flip(0)[:c].sum() >= 0.5 * values.sum())
    q = vectors[:, : D_IN - count]
    c = 3.0 * q.T @ moment @ q
    c = c + arguments.get("deviation_weight", 0.0) * c.diagonal().mean() * torch.eye(len(c), dtype=c.dtype)
    c = c + 1e-6 * c.diagonal().mean() * torch.eye(len(c), dtype=c.dtype)
    k = (keys @ q).T
    torch.testing.assert_close(update, gains.T @ k.T @ torch.linalg.inv(c + k @ k.T) @ q.T, rtol=1e-8, atol=1e-8)
    assert float((update @ vectors[:, D_IN - count :]).abs().max()) < 1e-10


def test_names_say_which_it_is():
    assert AlphaEdit(null_space="moving").name == "EvoEdit"
    assert MEMIT(remember_past=True, deviation_weight=1.0).name == "RLSEdit"
    assert MEMIT(deviation_weight=1.0).name == "MEMIT"
    assert MEMIT(remember_past=True, shared_directions=0.5).name == "MEMIT-seq, SUIT keys"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AlphaEdit(null_space="still"), "fixed or moving"),
        (lambda: MEMIT(deviation_weight=-1.0), "at least 0"),
        (lambda: MEMIT(shared_directions=1.0), "below 1"),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
