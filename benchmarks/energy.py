"""The energy of one large matrix against the products it cannot do without."""

import torch

from benchmarks.measure import Measurement, alternate, device_name
from sphere_callbacks.functional import hyperspherical_energy
from sphere_pl.process.devices import default_device

# One down-projection of an 8-billion-parameter LLaMA.
ROWS, COLUMNS = 4096, 14336
BLOCK = 512


def energy(repeats: int = 3, scale: float = 1.0) -> Measurement:
    """The exact energy against the bare products of its tiles; 1 would be no cost beside them."""
    rows, columns = int(ROWS * scale), int(COLUMNS * scale)
    weight = torch.randn(rows, columns, device=default_device())

    def products() -> None:
        for top in range(0, rows, BLOCK):
            for left in range(top, rows, BLOCK):
                weight[top : top + BLOCK] @ weight[left : left + BLOCK].T

    plain, ours = alternate(products, lambda: hyperspherical_energy(weight, block_size=BLOCK), repeats)
    name = f"energy {rows} x {columns}, to the bare products"
    return Measurement(name, plain / ours, 1 / 1.5, None, ours, device_name())
