"""What modules are called with and return, and whether two tensors say the same, up to rounding or a factor.

Shapes: `T` tokens of one prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_ROUNDINGS = 8  # rounding errors within which two vectors are one
_ORDER = 1e-5  # relative difference that the order of a sum may make
_CLOSE = 1e-3  # relative difference between a number that was measured and the one that it is


class Called(NamedTuple):
    """How a module was called, and what it returned.

    Attributes:
        path: Where it is, inside what was watched.
        args: What it was called with.
        kwargs: And by name.
        taken: The first tensor of floating-point numbers among these, copied; None if there is none.
        given: What it returned, copied, as far as it is one tensor or begins with one.
    """

    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    taken: Tensor | None
    given: Tensor | None


def watched(modules: Mapping[str, nn.Module], run: Callable[[], object]) -> list[Called]:
    """What modules are called with and return in `run`, in the order in which they are done."""
    seen: list[Called] = []
    waiting: dict[str, list[Tensor | None]] = {path: [] for path in modules}

    def before(path: str) -> Any:  # what a module is called with may be changed in place by the time it is done
        return lambda _, args, kwargs: waiting[path].append(_first_states((*args, *kwargs.values())))

    def after(path: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            seen.append(Called(path, args, kwargs, waiting[path].pop(), _first_states((output,))))

        return hook

    with ExitStack() as stack:
        for path, module in modules.items():
            stack.callback(module.register_forward_pre_hook(before(path), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after(path), with_kwargs=True).remove)
        run()
    return seen


def _first_states(values: Sequence[Any]) -> Tensor | None:
    first = [value[0] if isinstance(value, tuple | list) and value else value for value in values]
    found = next((each for each in first if isinstance(each, Tensor) and each.is_floating_point()), None)
    return None if found is None else found.detach().clone()


def tolerance(dtype: torch.dtype) -> float:
    """Relative difference within which two vectors are one."""
    return max(_ORDER, _ROUNDINGS * torch.finfo(dtype).eps)


def equal(one: Tensor, other: Tensor | None) -> bool:
    """Whether two tensors of one shape are the same, up to rounding and the order of sums."""
    if other is None or one.shape != other.shape:
        return False
    apart = (one.float() - other.float().to(one.device)).norm()
    return bool(apart <= tolerance(one.dtype) * other.float().norm().to(one.device))


def factor_of(one: Tensor | None, other: Tensor | None) -> float | None:
    """The number that `other` is multiplied by in `one`; None if it is not one number."""
    if one is None or other is None or one.numel() != other.numel():
        return None
    a, b = one.float().flatten(), other.float().flatten().to(one.device)
    factor = float(a @ b / (b @ b).clamp_min(1e-30))
    return factor if factor and equal(a.to(one.dtype), (factor * b).to(one.dtype)) else None


def close_factor(gained: Tensor, part: Tensor | None) -> float | None:
    """The number that `part` is multiplied by in what the stream gains, which is rounded to its dtype."""
    if part is None or part.numel() != gained.numel():
        return None
    a, b = gained.flatten(), part.float().flatten()
    factor = float(a @ b / (b @ b).clamp_min(1e-30))
    apart = float((a - factor * b).norm() / (factor * b).norm().clamp_min(1e-30))
    return factor if factor and apart <= tolerance(part.dtype) else None


def named_factor(factor: float, *places: object) -> str:
    """The name of a number of the model that is `factor`, or one over it; the number itself if none is; empty for 1.

    Example:
        >>> from types import SimpleNamespace
        >>> named_factor(0.125, SimpleNamespace(logits_scaling=8.0)), named_factor(0.25, SimpleNamespace(layers=4))
        ('1/logits_scaling', '0.25')
    """
    if abs(factor - 1) < _CLOSE:
        return ""
    numbers = {name: value for place in reversed(places) for name, value in _numbers(place)}
    for name, value in numbers.items():
        if abs(value - factor) < _CLOSE * abs(factor):
            return name
        if value and abs(1 / value - factor) < _CLOSE * abs(factor):
            return f"1/{name}"
    return f"{factor:.6g}"


def _numbers(place: object) -> list[tuple[str, float]]:
    """Names and values of the fractions that an object holds, and those in lists of it; counts are no factors."""
    found: list[tuple[str, float]] = []
    for name, value in vars(place).items():
        items = enumerate(value) if isinstance(value, list | tuple) else []
        pairs = [(name, value), *((f"{name}.{place}", item) for place, item in items)]
        found += [(key, float(each)) for key, each in pairs if type(each) is float]
    return found
