"""Frozen weights laid out once for bfloat16 products on a CPU.

oneDNN brings a weight into its own layout before every product, forwards and backwards: the fewer rows it meets, the
larger the share of time. Here it is done once for as long as the weights stay as they are. The products are the same
to the bit: only when the layout is made has changed.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from sphere_pl.model.language_model import LanguageModel
from sphere_pl.process.memory import free_memory

SHARE = 0.1  # of the free memory: as much as copies of weights may take
_CPU = torch.device("cpu")


@contextmanager
def laid_out(lm: LanguageModel, edited: Collection[nn.Module] = ()) -> Iterator[None]:
    """Lay out the linear maps of the head and of all blocks, but for those `edited`.

    What does not fit into a tenth of the free memory, or is not bfloat16 on a CPU, is left as it is. A weight that is
    changed all the same, in place or by another in its place, is used as it is from then on; changes in place through
    `weight.data` go unseen.

    Args:
        lm: The language model.
        edited: Modules whose weights will change.
    """
    head = cast(nn.Module, lm.model.get_output_embeddings())
    owners = [head, *(lm.block(layer) for layer in reversed(range(lm.n_layers)))]
    chosen = _fitting(owners, edited, SHARE * free_memory(_CPU)) if _knows_layouts() else []
    try:
        for module in chosen:
            module.forward = _Forward(module, _LaidOut(module.weight))  # type: ignore[method-assign]
        yield
    finally:
        for module in chosen:  # all of them, should memory have run out on the way
            vars(module).pop("forward", None)


def _knows_layouts() -> bool:
    """Whether this build of PyTorch has the operators, and the processor bfloat16; tried on x86 only."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _fitting(owners: Sequence[nn.Module], edited: Collection[nn.Module], room: float) -> list[nn.Linear]:
    """The linear maps in some modules whose weights, twice, fit into so many bytes together, in order."""
    found: list[nn.Linear] = []
    for owner in owners:
        for module in owner.modules():
            if _plain(module) and not any(module is each for each in edited):
                room -= 2 * module.weight.nbytes
                if room < 0:
                    return found
                found.append(module)
    return found


def _plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is a linear map as PyTorch has it, in bfloat16 on a CPU; accelerate wraps forwards."""
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    weight = module.weight
    frozen = not any(each.requires_grad for each in module.parameters())
    # Changes of inference tensors are not counted.
    return frozen and weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and not weight.is_inference()


class _LaidOut:
    """A weight's layouts: for products forwards now, backwards when a gradient first asks for it.

    Args:
        weight: Shape `[d_out, d_in]`.
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight, self._seen = weight, _state(weight)
        self._forwards, self._backwards = _reordered(weight), cast(Tensor | None, None)

    def still(self, weight: Tensor) -> bool:
        """Whether this is the weight that was laid out, unchanged and frozen."""
        return weight is self._weight and not weight.requires_grad and _state(weight) == self._seen

    def times(self, states: Tensor, bias: Tensor | None) -> Tensor:
        """`states @ weight.T + bias`."""
        return _times(states, self._forwards, bias)

    def times_transposed(self, gradient: Tensor) -> Tensor:
        """`gradient @ weight`."""
        if self._backwards is None:
            self._backwards = _reordered(self._weight.T.contiguous())
        return _times(gradient, self._backwards, None)


def _state(weight: Tensor) -> tuple[int, int]:
    """What changes with a weight: how often it was written to, and where it lies."""
    return weight._version, weight.data_ptr()


@torch.no_grad()
def _reordered(weight: Tensor) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(weight, None))


class _Forward:
    """What a linear map returns, by its weight's layouts.

    Args:
        module: The map.
        layouts: Of its weight.
    """

    def __init__(self, module: nn.Linear, layouts: _LaidOut) -> None:
        self._module, self._layouts = module, layouts

    def __call__(self, input: Tensor) -> Tensor:  # by the name that PyTorch gives it
        weight, bias = self._module.weight, self._module.bias
        # Autocast, or a module that computes in another type: let PyTorch refuse it.
        if input.dtype != torch.bfloat16 or not self._layouts.still(weight):
            return nn.functional.linear(input, weight, bias)
        return cast(Tensor, _Product.apply(input, self._layouts, bias))  # type: ignore[no-untyped-call]

    def __reduce__(self) -> tuple[Any, ...]:
        """A model that is copied or stored meanwhile takes its weights as they are: layouts can be neither."""
        return partial, (nn.Linear.forward, self._module)


class _Product(torch.autograd.Function):
    """`states @ weight.T + bias` with a gradient for the states alone."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, layouts: _LaidOut, bias: Tensor | None) -> Tensor:
        ctx.layouts = layouts
        return layouts.times(states, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.layouts.times_transposed(gradients[0]), None, None


def _times(states: Tensor, layout: Tensor, bias: Tensor | None) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(states, layout, bias, "none", [], ""))
