"""The solves and the projection against the formulas taken literally."""

from functools import partial

import torch
from torch import Tensor

from benchmarks.measure import Measurement, alternate, device_name, matmul_rate, relative_error, seconds
from sphere_callbacks.functional import principal_directions, project_out
from sphere_pl.methods.functional import alphaedit_update, memit_update, null_space_basis
from sphere_pl.methods.memory import KeyMemory
from sphere_pl.process.devices import default_device as device

D_IN, D_OUT, BATCH, PAST = 4096, 1024, 100, 2000
RIDGE = 10.0


def made_moment(d_in: int) -> Tensor:
    """A second moment whose spectrum falls as those of real models do: a few strong directions, a long tail."""
    scales = torch.logspace(1, -4, d_in, device=device())
    rotation = torch.linalg.qr(torch.randn(d_in, d_in, device=device())).Q
    moment: Tensor = rotation * scales @ rotation.T
    # A product in floating point is not quite symmetric, and a Cholesky factor sees one triangle only.
    return (moment + moment.T) / 2


def alphaedit(repeats: int = 3) -> Measurement:
    """One AlphaEdit solve with 2,000 past keys, and taking its keys into the past."""
    basis = null_space_basis(made_moment(D_IN), 0.02)
    keys, residuals = torch.randn(BATCH, D_IN, device=device()), torch.randn(BATCH, D_OUT, device=device())
    past_keys = torch.randn(PAST, D_IN, device=device())
    projector, memory = basis @ basis.T, past_keys.T @ past_keys
    past = KeyMemory.empty(basis.new_tensor(1 / RIDGE), basis.shape[1])
    for batch in past_keys.split(BATCH):
        past = past.extend(batch @ basis)

    def literal() -> Tensor:
        system = projector @ (keys.T @ keys + memory) + RIDGE * torch.eye(D_IN, device=device())
        solution: Tensor = torch.linalg.solve(system, projector @ keys.T @ residuals)
        memory + keys.T @ keys
        return solution.T

    def ours() -> Tensor:
        update = alphaedit_update(keys, residuals, basis, past)
        past.extend(keys @ basis)
        return update

    assert relative_error(ours(), literal()) < 1e-3
    plain, fast = alternate(literal, ours, repeats)
    # What is left to do with the inverse at hand: in and out of the null space, the inverse twice, the update.
    m = basis.shape[1]
    operations = 2 * BATCH * (3 * D_IN * m + 2 * m * m + D_IN * D_OUT)
    share = operations / fast / matmul_rate(torch.float32)
    return Measurement(f"AlphaEdit solve, d_in {D_IN}, {PAST} past keys", plain / fast, 15, share, fast, device_name())


def memit(repeats: int = 3) -> Measurement:
    """One MEMIT solve in float64, as in the authors' code; the constant is inverted once a run."""
    weighted = 15000.0 * made_moment(D_IN).double()
    past = KeyMemory.empty(torch.cholesky_inverse(torch.linalg.cholesky(weighted)), D_IN)
    keys = torch.randn(BATCH, D_IN, device=device(), dtype=torch.float64)
    residuals = torch.randn(BATCH, D_OUT, device=device(), dtype=torch.float64)

    def literal() -> Tensor:
        solution: Tensor = torch.linalg.solve(weighted + keys.T @ keys, keys.T)
        return residuals.T @ solution.T

    def ours() -> Tensor:
        return memit_update(keys, residuals, past.whiten(keys))

    assert relative_error(ours(), literal()) < 1e-6
    plain, fast = alternate(literal, ours, repeats)
    share = 2 * BATCH * D_IN * (D_IN + D_OUT + BATCH) / fast / matmul_rate(torch.float64)
    return Measurement(f"MEMIT solve, d_in {D_IN}, float64", plain / fast, 20, share, fast, device_name())


def growth(repeats: int = 5) -> Measurement:
    """All linear algebra of one matrix, at edits 51 to 150 and at 901 to 1,000, shapes of the default run."""
    d_in, d_out, batch = 1536, 576, 10
    basis = null_space_basis(made_moment(d_in), 0.02)
    weight = torch.randn(d_out, d_in, device=device()) * torch.logspace(0, -1, d_in, device=device())
    stream = [torch.randn(batch, d_in, device=device()) for _ in range(100)]
    residuals = torch.randn(batch, d_out, device=device())

    def once() -> list[float]:
        past = KeyMemory.empty(basis.new_tensor(1 / RIDGE), basis.shape[1])

        def edit(keys: Tensor) -> None:
            nonlocal past
            project_out(alphaedit_update(keys, residuals, basis, past), principal_directions(weight, 0.5), 0.5)
            past = past.extend(keys @ basis)

        return [seconds(partial(edit, keys)) for keys in stream]

    times = torch.tensor([once() for _ in range(repeats)]).median(0).values / batch
    early, late = float(times[5:15].mean()), float(times[90:].mean())
    name = "linear algebra of an edit: cost at edit 100 by cost at edit 1,000"
    return Measurement(name, early / late, 1 / 1.2, None, late, device_name())


def projection(repeats: int = 3) -> Measurement:
    """SPHERE's principal directions and projection of one update."""
    d_out, d_in, target = (1024, 4096, 15) if device().type == "cpu" else (4096, 14336, 60)
    # Rows that share some directions, as those of trained matrices do.
    weight = torch.randn(d_out, d_in, device=device()) * torch.logspace(0, -1, d_in, device=device())
    update = torch.randn(d_out, d_in, device=device())

    def literal() -> Tensor:
        unit = weight / (weight.norm(dim=1, keepdim=True) + 1e-8)
        values, vectors = torch.linalg.eigh(unit.T @ unit / d_out)
        share = values.flip(0).cumsum(0) / values.sum()
        rank = int((share <= 0.5).sum()) + 1
        top: Tensor = vectors[:, -rank:]
        projected: Tensor = update @ (torch.eye(d_in, device=device()) - 0.5 * top @ top.T)
        return projected

    def ours() -> Tensor:
        return project_out(update, principal_directions(weight, 0.5), 0.5)

    assert relative_error(ours(), literal()) < 1e-4
    plain, fast = alternate(literal, ours, repeats)
    return Measurement(f"SPHERE projection {d_out} x {d_in}", plain / fast, target, None, fast, device_name())
