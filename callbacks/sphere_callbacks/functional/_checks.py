"""What every function asks of its arguments and of their device, and the precision in which products are formed."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

# By name: to try it out would wake up a GPU that the run may not use, and take memory on it.
_WITHOUT_DOUBLE = frozenset({"mps"})
_AUTOCAST_KINDS = ("cpu", "cuda", "xpu")


def as_matrix(weight: Tensor, name: str = "weight") -> Tensor:
    """Return a weight as a floating matrix that is wide enough to compute with.

    Args:
        weight: Tensor of shape ``[d_out, d_in]`` in any floating dtype.
        name: The name of the argument, used in messages.

    Returns:
        The tensor itself for float32 and float64, a float32 copy for half precision.

    Raises:
        TypeError: If the dtype is an integer, a boolean or a complex one.
        ValueError: If the tensor is not a matrix, or lies on a device without double precision.

    Example:
        >>> as_matrix(torch.ones(2, 3, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    if not weight.is_floating_point():
        raise TypeError(
            f"`{name}` must have a floating dtype, got {weight.dtype}. Dequantise or convert it first, for instance "
            f"with `{name}.float()`."
        )
    if weight.ndim != 2:
        raise ValueError(f"`{name}` must be a matrix [d_out, d_in], got shape {list(weight.shape)}.")
    if not computes_in_double(weight.device):
        raise ValueError(
            f"`{name}` lies on {weight.device}, which has no double precision: sums over many rows would drown what an "
            f"edit changes. Move it to the CPU first, for instance with `{name}.cpu()`."
        )
    return weight if weight.dtype in (torch.float32, torch.float64) else weight.float()


def check_floating(update: Tensor) -> None:
    """Refuse an update whose dtype would cut off what is left of it.

    Raises:
        TypeError: If the dtype is an integer, a boolean or a complex one.
    """
    if not update.is_floating_point():
        raise TypeError(
            f"`update` must have a floating dtype, got {update.dtype}: what is left of it is no integer. Convert it "
            "first, for instance with `update.float()`."
        )


def computes_in_double(device: torch.device) -> bool:
    """Tell whether a device knows float64; Apple's GPUs do not.

    Example:
        >>> computes_in_double(torch.device("cpu"))
        True
    """
    return device.type not in _WITHOUT_DOUBLE


@contextmanager
def exact_products() -> Iterator[None]:
    """Form float32 matrix products in float32, whatever precision the process allows elsewhere.

    ``torch.set_float32_matmul_precision("high")``, which Lightning recommends on recent GPUs, rounds the factors of
    each product to ten bits. That error is larger than the change of energy that an edit batch makes, so the products
    here opt out. The setting is process-wide in PyTorch and is put back on exit. ``torch.autocast``, in which a
    ``training_step`` runs under ``precision="bf16-mixed"``, would round to eight bits and is off within.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16), exact_products():
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with ExitStack() as without_autocast:
            for kind in filter(torch.is_autocast_enabled, _AUTOCAST_KINDS):
                without_autocast.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
