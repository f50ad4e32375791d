"""The energy of one large matrix against the products it cannot do without, and the incremental mode against it."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.measure import Measurement, alternate, device_name, seconds
from sphere_callbacks.functional import EnergyFollower, EnergyTracker, hyperspherical_energy
from sphere_pl.devices import default_device

# One down-projection of an 8-billion-parameter LLaMA.
ROWS, COLUMNS, RANK, UPDATES = 4096, 14336, 100, 100
BLOCK = 512
WORST_DRIFT = 1e-6


def _weight(scale: float) -> Tensor:
    return torch.randn(int(ROWS * scale), int(COLUMNS * scale), device=default_device())


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
    return _by_factors(repeats, scale, products=None)


def incremental_half(repeats: int = 3, scale: float = 1.0) -> Measurement:
    """The same with the weight multiplied by the change in bfloat16."""
    return _by_factors(repeats, scale, products=torch.bfloat16)


def _by_factors(repeats: int, scale: float, products: torch.dtype | None) -> Measurement:
    weight = _weight(scale)
    tracker = EnergyTracker(weight, refresh_every=repeats + 2, products=products)

    def follow(change: tuple[Tensor, Tensor], changed: Tensor) -> Tensor:
        tracker.update(*change, changed)
        return tracker.statistics().energy

    how = f"factors known, products in {str(products or weight.dtype).removeprefix('torch.')}"
    return _against_exact(weight, repeats, follow, how)


def followed(repeats: int = 3, scale: float = 1.0) -> Measurement:
    """The same where the factors have to be found from the weight, as the callback does."""
    weight = _weight(scale)
    follower = EnergyFollower(weight, refresh_every=repeats + 2)

    def follow(_: tuple[Tensor, Tensor], changed: Tensor) -> Tensor:
        follower.follow(changed, RANK)
        return follower.statistics().energy

    found = _against_exact(weight, repeats, follow, "factors found")
    assert follower.exact == 1, "the change was not found to be of low rank"
    return found


def _against_exact(
    weight: Tensor, repeats: int, follow: Callable[[tuple[Tensor, Tensor], Tensor], Tensor], how: str
) -> Measurement:
    """Time the energies of a weight that goes on changing; check the last one first."""
    changes = [_change(weight) for _ in range(repeats + 1)]
    weights = [weight]
    for left, right in changes:
        weights.append(torch.addmm(weights[-1], left, right))
    todo = list(zip(changes, weights[1:], strict=True))
    energies: list[Tensor] = []
    plain, ours = alternate(
        lambda: hyperspherical_energy(weights[-1]), lambda: energies.append(follow(*todo[len(energies)])), repeats
    )
    error = float((energies[-1] / hyperspherical_energy(weights[-1]) - 1).abs())
    assert error < WORST_DRIFT, f"the energy was followed with an error of {error}"
    name = f"incremental energy {weight.shape[0]} x {weight.shape[1]}, rank {RANK}, {how}"
    return Measurement(name, plain / ours, 20, None, ours, device_name())


def drift(scale: float = 1.0, products: torch.dtype | None = None) -> Measurement:
    """How far below 1e-6 the relative error of the energy is after 100 updates."""
    weight = _weight(scale)
    tracker = EnergyTracker(weight, refresh_every=UPDATES, products=products)

    def follow() -> None:
        left, right = _change(weight)
        weight.addmm_(left, right)
        tracker.update(left, right, weight)

    took = sum(seconds(follow) for _ in range(UPDATES))
    name = f"drift of the incremental energy after {UPDATES} updates, times below {WORST_DRIFT:g}"
    name += "" if products is None else f", products in {str(products).removeprefix('torch.')}"
    return Measurement(name, WORST_DRIFT / tracker.drift, 1, None, took / UPDATES, device_name())


def drift_half(scale: float = 1.0) -> Measurement:
    """The same with the weight multiplied by the change in bfloat16."""
    return drift(scale, torch.bfloat16)
