"""The memory of keys against the plain inverse of the sum it stands for."""

import pytest
import torch

from sphere_pl.methods import MEMIT, AlphaEdit, KnownProblem
from sphere_pl.methods.memory import KeyMemory

M = 40


def batches(count, size, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    common = 3.0 * torch.randn(1, M, generator=generator, dtype=torch.float64)  # keys of one layer resemble each other
    return [(common + torch.randn(size, M, generator=generator, dtype=torch.float64)).to(dtype) for _ in range(count)]


def regulariser(kind):
    if kind == "ridge":
        return torch.tensor(0.5, dtype=torch.float64), 2.0 * torch.eye(M, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(M, M, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    moment = q * torch.logspace(-1, 2, M, dtype=torch.float64) @ q.T
    return torch.linalg.inv(moment), moment


@pytest.mark.parametrize("kind", ["ridge", "moment"])
@pytest.mark.parametrize("size", [1, 3, 2 * M])
def test_it_is_the_inverse_of_the_sum_however_many_keys_there_have_been(kind, size):
    inverse, system = regulariser(kind)
    memory, probe = KeyMemory.empty(inverse, M), batches(1, 5, seed=9)[0]
    absorbed = 0
    for keys in batches(30, size):
        memory, system = memory.extend(keys), system + keys.T @ keys
        absorbed += not len(memory.factor)
        expected = torch.linalg.solve(system, probe.T).T
        torch.testing.assert_close(memory.whiten(probe), expected, rtol=1e-8, atol=1e-8)
    assert absorbed > 1


def test_what_is_kept_does_not_grow_with_the_stream():
    memory, sizes = KeyMemory.empty(torch.tensor(0.5, dtype=torch.float64), M), []
    for keys in batches(100, 3):
        memory = memory.extend(keys)
        sizes.append(sum(tensor.numel() for tensor in memory))
    assert max(sizes) <= KeyMemory.most_numbers(M) < 1.4 * M * M
    assert sizes[0] < M * M / 4  # nothing of size m x m while keys are few


def test_single_precision_stays_as_good_as_one_solve_from_the_sum():
    """A thousand edits in float32: the error is that of factoring the float32 sum again, up to a small factor."""
    memory, total = KeyMemory.empty(torch.tensor(0.1), M), torch.zeros(M, M)
    exact = torch.zeros(M, M, dtype=torch.float64)
    probe = batches(1, 5, seed=9)[0]
    for keys in batches(100, 10, dtype=torch.float32):
        memory, total = memory.extend(keys), total + keys.T @ keys
        exact += keys.double().T @ keys.double()
    expected = torch.linalg.solve(exact + 10.0 * torch.eye(M), probe.T).T
    again = torch.cholesky_solve(probe.float().T, torch.linalg.cholesky(total + 10.0 * torch.eye(M))).T
    error, of_one_solve = (
        float((x - expected).norm() / expected.norm()) for x in (memory.whiten(probe.float()), again)
    )
    assert error < max(1e-4, 10 * of_one_solve)


@pytest.mark.parametrize(
    "method",
    [
        AlphaEdit(2.0, 0.1),
        MEMIT(3.0, remember_past=True),
        MEMIT(3.0, True, deviation_weight=1.0, shared_directions=0.5),
    ],
)
@pytest.mark.parametrize("stop", [2, 17])  # before and after keys are taken into the inverse
def test_a_state_rebuilt_and_completed_with_what_was_saved_goes_on_bit_for_bit(method, stop):
    generator = torch.Generator().manual_seed(2)
    weight = torch.zeros(6, M)
    q = torch.linalg.qr(torch.randn(M, M, generator=generator)).Q
    moment, residuals = q * torch.logspace(-3, 1, M) @ q.T, torch.randn(3, 6, generator=generator)
    stream = batches(20, 3, dtype=torch.float32)
    whole = method.initial_state(weight, moment)
    for place, keys in enumerate(stream):
        problem = KnownProblem(keys, residuals)
        if place == stop:
            saved = {name: whole[name].clone() for name in method.saved}
            resumed = {**method.initial_state(weight, moment), **saved}
        if place >= stop:
            assert torch.equal(method.update(problem, whole), method.update(problem, resumed))
            resumed = method.remember(problem, resumed)
        whole = method.remember(problem, whole)


def test_keys_that_are_no_numbers_spoil_what_is_solved_next_and_raise_nothing_yet():
    memory = KeyMemory.empty(torch.tensor(0.5), M).extend(torch.full([2, M], torch.nan))
    assert memory.whiten(torch.ones(1, M)).isnan().any()
