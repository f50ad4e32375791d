"""How everything here is measured: two programs in one process, taking turns, medians, correctness first."""

import platform
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sphere_pl.model.products import has_units
from sphere_pl.process.devices import default_device


class Measurement(NamedTuple):
    """One cost, measured against its plain implementation.

    Attributes:
        name: The cost.
        ratio: How many times faster than the plain implementation.
        target: What the ratio shall be at least.
        share_of_ceiling: Arithmetic done a second, as a share of the machine's matrix-product rate in the same dtype.
        seconds: Median time of ours, in the unit that `name` says.
        device: Where.
    """

    name: str
    ratio: float
    target: float
    share_of_ceiling: float | None
    seconds: float
    device: str


def device_name() -> str:
    """The device in words."""
    if default_device().type == "cpu":
        threads = torch.get_num_threads()
        return f"{platform.processor() or platform.machine()} CPU, {threads} thread{'' if threads == 1 else 's'}"
    return str(torch.cuda.get_device_name())


def clock() -> Callable[[], float]:
    """The processor's clock on one thread of a CPU, since other programs disturb it least; the wall's otherwise."""
    alone = default_device().type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def seconds(program: Callable[[], Any], now: Callable[[], float] | None = None) -> float:
    """Time of one call, the device's work included; a program that starts others needs `now=time.perf_counter`."""
    now = now or clock()
    _wait()
    began = now()
    program()
    _wait()
    return now() - began


def _wait() -> None:
    if default_device().type != "cpu":
        torch.accelerator.synchronize()


def alternate(plain: Callable[[], Any], ours: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median times of two programs that take turns, after one warm-up of ours."""
    ours()
    pairs = [(seconds(plain), seconds(ours)) for _ in range(repeats)]
    return statistics.median(p for p, _ in pairs), statistics.median(o for _, o in pairs)


def matmul_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Floating-point operations a second at which matrices of a type are multiplied here: the best of five.

    Where the CPU has no units for a type, its products are taken in float32.
    """
    a = torch.randn(size, size, device=default_device())
    if a.device.type != "cpu" or dtype.itemsize > 2 or has_units(dtype):
        a = a.to(dtype)
    a @ a
    return 2 * size**3 / min(seconds(lambda: a @ a) for _ in range(5))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference by the norm of what is expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())
