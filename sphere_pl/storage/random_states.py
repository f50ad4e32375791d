"""The state of every random generator, as tensors and plain values."""

import random
from typing import Any

import numpy as np
import torch

from sphere_pl.process.devices import accelerator


def random_states() -> dict[str, Any]:
    """The state of Python's, NumPy's and PyTorch's generators, the accelerators' included."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    found = accelerator()
    backend = None if found is None else torch.get_device_module(found)
    return {
        "python": [version, torch.tensor(numbers), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "accelerators": [] if backend is None else [state.cpu() for state in backend.get_rng_state_all()],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Put all generators back; those of devices that are not here are left out."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    found = accelerator()
    if found is not None:
        backend = torch.get_device_module(found)
        for index, state in enumerate(states["accelerators"][: torch.accelerator.device_count()]):
            backend.set_rng_state(state.cpu(), index)
