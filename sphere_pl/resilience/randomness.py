"""The state of every random generator, as tensors and plain values."""

import random
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """The state of Python's, NumPy's and PyTorch's generators, the accelerators' included."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    accelerator = torch.accelerator.current_accelerator()
    backend = None if accelerator is None else torch.get_device_module(accelerator)
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
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None:
        backend = torch.get_device_module(accelerator)
        for index, state in enumerate(states["accelerators"][: torch.accelerator.device_count()]):
            backend.set_rng_state(state.cpu(), index)
