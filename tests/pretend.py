"""Devices that are not there: tensors that compute on the CPU but claim to lie on `meta:1` or `meta:2`.

Inside `pretending()` an operation on tensors of different devices is an error, as it is on GPUs, while the numbers are
the CPU's. As on GPUs, tensors without dimensions and indices may lie on the CPU.
"""

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from sphere_pl.model.language_model import LanguageModel

CPU = torch.device("cpu")
_INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default}
_CROSSING = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class Elsewhere(Tensor):
    """A CPU tensor that says it lies on another device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> "Elsewhere":
        """Wrap it; the data stay in `inner`."""
        made: Elsewhere = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=device
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Nothing is computed but inside `pretending()`."""
        with _Devices():
            return func(*args, **kwargs or {})


class _Devices(TorchDispatchMode):
    """Run everything on the CPU and refuse to mix devices."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        device = _result_device(func, args, tensors, kwargs.get("device"))
        if "device" in kwargs:
            kwargs["device"] = CPU
            kwargs.pop("pin_memory", None)
        out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        known = {id(each.inner): each for each in tensors if isinstance(each, Elsewhere)}

        def outer(each: Any) -> Any:
            if not isinstance(each, Tensor) or isinstance(each, Elsewhere):
                return each
            return known.get(id(each)) if id(each) in known else each if device == CPU else Elsewhere(each, device)

        return tree_map(outer, out)


class _Literals(TorchFunctionMode):
    """Numbers on their way from Python and back, which torch would lose on what it takes for the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and kwargs.get("device") is not None:
            return func(*args, **{**kwargs, "device": CPU}).to(kwargs["device"])
        if func is Tensor.new_tensor:
            return torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)).to(args[0].device)
        if func in {Tensor.__getitem__, Tensor.__setitem__}:
            index = tuple(torch.tensor(part) if isinstance(part, list) else part for part in _tuple(args[1]))
            return func(args[0], index, *args[2:])
        if func in {Tensor.tolist, Tensor.data_ptr} and isinstance(args[0], Elsewhere):
            return func(args[0].inner)
        return func(*args, **kwargs)


def _tuple(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _inner(each: Any) -> Any:
    return each.inner if isinstance(each, Elsewhere) else each


def _result_device(func: Any, args: Any, tensors: list[Tensor], asked: torch.device | None) -> torch.device:
    """Where the result lies; an error if that has no answer."""
    if func in _CROSSING:
        return torch.device(asked) if asked is not None else tensors[0].device
    counted = tensors
    if func in _INDEXING:
        indices = [each for each in args[1] if each is not None]
        counted = [each for each in tensors if not any(each is index and each.device == CPU for index in indices)]
    devices = {each.device for each in counted if each.ndim or each.device != CPU} or {CPU}
    if len(devices) > 1:
        raise RuntimeError(f"{func} is given tensors on {', '.join(sorted(map(str, devices)))}")
    return torch.device(asked) if asked is not None else devices.pop()


@contextmanager
def pretending() -> Iterator[None]:
    """Pretend that there are further devices."""
    with _Devices(), _Literals():
        yield


def spread(lm: LanguageModel, homes: Mapping[str, str], hooked: Container[str] = ()) -> LanguageModel:
    """Put modules of a language model on devices.

    Args:
        lm: The language model.
        homes: Device of modules, by name in the Hugging Face model; all else stays on the CPU.
        hooked: Modules that move what they are called with themselves, by accelerate's hook.
    """
    with pretending():
        for name, place in homes.items():
            device = torch.device(place)
            home = lm.model.get_submodule(name)
            for module in home.modules():
                _place(module, device)
            if name in hooked:
                add_hook_to_module(home, AlignDevicesHook(device, skip_keys=["past_key_values", "cache"]))
    return lm


def _place(module: nn.Module, device: torch.device) -> None:
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(Elsewhere(parameter.data, device), requires_grad=False)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = Elsewhere(buffer, device)
