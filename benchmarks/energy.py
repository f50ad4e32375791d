"""The energy of one large matrix against the products it cannot do without, and the incremental mode against it."""

import torch
from torch import Tensor

from benchmarks.measure import Measurement, alternate, device, device_name
from sphere_callbacks.functional import EnergyTracker, hyperspherical_energy

# One down-projection of an 8-billion-parameter LLaMA.
ROWS, COLUMNS, RANK, UPDATES = 4096, 14336, 100, 100
BLOCK = 1024


def _weight(scale: float) -> Tensor:
    return torch.randn(int(ROWS * scale), int(COLUMNS * scale), device=device())


def _change(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of a change of the weight by a thousandth of its norm."""
    left = torch.randn(weight.shape[0], RANK, device=weight.device)
    return left * (1e-3 / RANK**0.5), torch.randn(RANK, weight.shape[1], device=weight.device)


def energy(repeats: int = 3, scale: float = 1.0) -> Measurement:
    """The exact energy against the bare products of its tiles; 1 would be no cost beside them."""
    weight = _weight(scale)
    rows = weight.shape[0]

    def products() -> None:
        for top in range(0, rows, BLOCK):
            for left in range(top, rows, BLOCK):
                weight[top : top + BLOCK] @ weight[left : left + BLOCK].T

    plain, ours = alternate(products, lambda: hyperspherical_energy(weight, block_size=BLOCK), repeats)
    name = f"energy {rows} x {weight.shape[1]}, to the bare products"
    return Measurement(name, plain / ours, 1 / 1.5, None, ours, device_name())


def incremental(repeats: int = 3, scale: float = 1.0) -> Measurement:
    """Following a change of rank 100 by its factors, against the exact energy."""
    return _incremental(repeats, scale, by_factors=True)


def followed(repeats: int = 3, scale: float = 1.0) -> Measurement:
    """The same where the factors have to be found from the weight, as the callback does."""
    return _incremental(repeats, scale, by_factors=False)


def _incremental(repeats: int, scale: float, by_factors: bool) -> Measurement:
    weight = _weight(scale)
    tracker = EnergyTracker(weight, refresh_every=UPDATES + 1, block_size=BLOCK)
    changes = [_change(weight) for _ in range(repeats + 1)]
    weights = [weight]
    for left, right in changes:
        weights.append(torch.addmm(weights[-1], left, right))
    todo = iter(list(zip(changes, weights[1:], strict=True)))

    def follow() -> Tensor:
        (left, right), changed = next(todo)
        if by_factors:
            tracker.update(left, right, changed)
        else:
            tracker.follow(changed, RANK)
        return tracker.statistics().energy

    plain, ours = alternate(lambda: hyperspherical_energy(weight, block_size=BLOCK), follow, repeats)
    assert tracker.exact == 1, "the change was not found to be of low rank"
    how = "factors known" if by_factors else "factors found"
    name = f"incremental energy {weight.shape[0]} x {weight.shape[1]}, rank {RANK}, {how}"
    return Measurement(name, plain / ours, 20, None, ours, device_name())


def drift(scale: float = 1.0) -> float:
    """Relative error of the energy after 100 updates."""
    weight = _weight(scale)
    tracker = EnergyTracker(weight, refresh_every=UPDATES, block_size=BLOCK)
    for _ in range(UPDATES):
        left, right = _change(weight)
        weight.addmm_(left, right)
        tracker.update(left, right, weight)
    return tracker.drift
