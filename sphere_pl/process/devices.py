"""Where to compute."""

import torch

from sphere_callbacks.functional import computes_in_double


def accelerator() -> torch.device | None:
    """The accelerator that editing can use; None without one, or without its driver.

    Second moments, solves and scores are sums in double precision, which Apple's GPUs have not: there the CPU edits.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    return found if found is not None and computes_in_double(found) else None


def accelerator_is_idle() -> bool:
    """Whether there is an accelerator that editing cannot use."""
    return accelerator() is None and torch.accelerator.is_available()


def default_device() -> torch.device:
    """The accelerator that editing can use, else the CPU."""
    return accelerator() or torch.device("cpu")
