"""How much memory is free at this moment."""

import psutil
import torch

from sphere_pl.process.devices import accelerator


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still have on a device.

    In main memory a limit of the process (`ulimit -v`) counts as well as what others leave.
    """
    found = accelerator()
    if found is not None and device.type == found.type:
        free, total = torch.accelerator.get_memory_info(device)
        return min(total, free + torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device))
    return min(int(psutil.virtual_memory().available), _below_limit())


def _below_limit() -> int:
    """Bytes of address space that the process has left."""
    unlimited = 2**63 - 1
    try:
        import resource
    except ImportError:  # Windows
        return unlimited
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return unlimited
    return max(0, limit - int(psutil.Process().memory_info().vms))
