"""Frozen weights laid out once for bfloat16 products on a CPU.

oneDNN brings a weight into its own layout before every product, forwards and backwards: the fewer rows it meets, the
larger the share of time. Here it is done once for as long as the weights stay as they are. The products are the same
to the bit: only when the layout is made has changed.
"""

from collections.abc import Iterator, Sequence
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
def laid_out(lm: LanguageModel, first_block: int) -> Iterator[None]:
    """Lay out the linear maps from block `first_block` on; they must not change meanwhile.

    What does not fit into a tenth of the free memory, or is not bfloat16 on a CPU, is left as it is. So is the head: to
    lay it out takes as long as it saves in twenty evaluations.
    """
    blocks = [lm.block(layer) for layer in range(first_block, lm.n_layers)]
    chosen = _fitting(blocks, SHARE * free_memory(_CPU)) if _knows_layouts() else []
    try:
        for module in chosen:
            module.forward = partial(_product, module, *_layouts(module.weight))  # type: ignore[method-assign]
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


def _fitting(owners: Sequence[nn.Module], room: float) -> list[nn.Linear]:
    """The linear maps in some modules whose weights, twice, fit into so many bytes together, in order."""
    found: list[nn.Linear] = []
    for owner in owners:
        for module in owner.modules():
            if _plain(module):
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
    return weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and not weight.requires_grad


@torch.no_grad()
def _layouts(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight laid out for products forwards and backwards."""
    reorder = torch.ops.mkldnn._reorder_linear_weight
    return reorder(weight, None), reorder(weight.T.contiguous(), None)


def _product(module: nn.Linear, forwards: Tensor, backwards: Tensor, states: Tensor) -> Tensor:
    """What the module returns."""
    if states.dtype != torch.bfloat16:  # autocast, or a module that computes in another type: let PyTorch refuse it
        return nn.functional.linear(states, module.weight, module.bias)
    return cast(Tensor, _Product.apply(states, forwards, backwards, module.bias))  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    """`states @ weight.T + bias` with a gradient for the states alone."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, forwards: Tensor, backwards: Tensor, bias: Tensor | None) -> Tensor:
        ctx.backwards = backwards
        return _times(states, forwards, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _times(gradients[0], ctx.backwards, None), None, None, None


def _times(states: Tensor, layout: Tensor, bias: Tensor | None) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(states, layout, bias, "none", [], ""))
