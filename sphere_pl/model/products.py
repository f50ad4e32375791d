"""How the linear maps of a model multiply on a CPU, where PyTorch alone would be slow.

*A processor with units for 16-bit numbers* multiplies fast, but oneDNN brings a weight into its own layout before every
product, forwards and backwards: the fewer rows it meets, the larger the share of time. Here that is done once for as
long as the weights stay as they are. The products are the same to the bit: only when the layout is made has changed.

*A processor without* multiplies bfloat16 and float16 slower than float32: with PyTorch's own loops at a seventh of the
rate (most laptops), with what oneDNN makes of AVX512 at a fifth (servers before bfloat16), at half of it on Intel's
servers whose matrix units a virtual machine hides. There a product is taken in float32 and its result rounded, which
differs by the order of the sums. Weights that stay as they are have a copy in float32, if there is room; others become
float32 for the moment of a product, which costs a tenth more from a hundred rows on. Both ways are the same to the bit,
so that room decides nothing else.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, chain
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from sphere_pl.model.language_model import LanguageModel
from sphere_pl.process.memory import free_memory

SHARE = 0.1  # of the free memory: as much as copies of weights may take
_PIECE = 2**24  # numbers that become float32 at once: 64 MiB
_FEW = 8  # rows: up to these oneDNN's products of 16 bits were faster on both kinds of processors where 128 are slower
_CPU = torch.device("cpu")
_NO_LIMIT = {"", "ALL", "DEFAULT"}  # values of ONEDNN_MAX_CPU_ISA that leave no instructions out
_HALVES = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


@contextmanager
def fast_products(lm: LanguageModel, edited: Collection[nn.Module] = ()) -> Iterator[None]:
    """Let the linear maps of the head and of all blocks multiply as fast as this CPU can.

    Copies are kept of weights that are not `edited`, as many as fit into a tenth of the free memory. A weight that is
    changed all the same, in place or by another in its place, is used as it is from then on; changes in place through
    `weight.data` go unseen. What is neither bfloat16 nor float16, or not on a CPU, is left as it is.

    Args:
        lm: The language model.
        edited: Modules whose weights will change.
    """
    maps = list(_maps(lm))
    held = _fitting([each for each in maps if _can_be_held(each, edited)], SHARE * free_memory(_CPU))
    before: list[tuple[nn.Module, Any]] = []
    try:
        for module in maps:
            products = _held(module) if module in held else _as_it_is(module)
            if products is not None:
                before.append((module, vars(module).get("forward")))
                module.forward = _Forward(module, products)
        yield
    finally:  # all that was done, should memory have run out on the way
        for module, forward in before:
            del module.forward
            if forward is not None:
                module.forward = forward


def widen_products(model: nn.Module) -> None:
    """Let a model multiply in float32 where this CPU has no units for its type; for good, and without copies."""
    for module in filter(_is_map, model.modules()):
        products = _as_it_is(module)
        if products is not None:
            module.forward = _Forward(module, products)


def has_units(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies bfloat16, or float16, faster than it multiplies float32.

    By what the processor says of itself and never by a measurement: what a run computes must not depend on what else
    the machine was doing.
    """
    return _is_by_library(dtype) and (dtype != torch.bfloat16 or not _is_halved(torch.cpu.get_capabilities()))


def _is_by_library(dtype: torch.dtype) -> bool:
    """Whether PyTorch hands products of this type to oneDNN, which takes them on processors without units as well."""
    asked = getattr(torch.ops.mkldnn, _HALVES[dtype], None) if torch.backends.mkldnn.is_available() else None
    return asked is not None and bool(asked())


def _is_halved(processor: Mapping[str, Any]) -> bool:
    """Whether oneDNN multiplies bfloat16 at half of float32's rate, or less, on an x86 processor with AVX512.

    Without AVX512-BF16 it takes numbers apart. With it, AMD's and Intel's first (Cooper Lake) are twice as fast as in
    float32. Intel's later ones, which also have AVX512-FP16, do it at half of the rate and are fast by their matrix
    units (AMX), which many virtual machines hide and `ONEDNN_MAX_CPU_ISA` can leave out.

    Args:
        processor: What `torch.cpu.get_capabilities` says of it.
    """
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if not processor.get("avx512_f") or (processor.get("amx_bf16") and (allowed in _NO_LIMIT or "AMX" in allowed)):
        return False
    intel = str(processor.get("cpu_name", "")).startswith("Intel")
    return not processor.get("avx512_bf16") or bool(intel and processor.get("avx512_fp16"))


def knows_layouts() -> bool:
    """Whether this build of PyTorch has the operators, and oneDNN takes bfloat16; tried on x86 only."""
    return (
        _is_by_library(torch.bfloat16)
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _maps(lm: LanguageModel) -> Iterator[nn.Module]:
    """Linear maps of the head and of all blocks, the last block's first: gradients go through these most often."""
    owners = [lm.model.get_output_embeddings(), *(lm.block(layer) for layer in reversed(range(lm.n_layers)))]
    return filter(_is_map, chain.from_iterable(owner.modules() for owner in owners))


def _is_map(module: nn.Module) -> bool:
    """Whether a module is a linear map as its library has it, in 16 bits on a CPU; accelerate wraps forwards."""
    if type(module) not in (nn.Linear, Conv1D):
        return False
    forward, weight = vars(module).get("forward"), cast(Tensor, module.weight)
    own = forward is None or isinstance(forward, _Forward) or getattr(forward, "func", None) is type(module).forward
    return own and weight.dtype in _HALVES and weight.device.type == "cpu"


def _can_be_held(module: nn.Module, edited: Collection[nn.Module]) -> bool:
    """Whether a copy of a weight makes products faster, and changes of it would be seen and are not meant.

    Changes of inference tensors are not counted.
    """
    weight = cast(Tensor, module.weight)
    frozen = not any(each.requires_grad for each in module.parameters()) and not weight.is_inference()
    helps = not has_units(weight.dtype) or (
        type(module) is nn.Linear and weight.dtype == torch.bfloat16 and knows_layouts()
    )
    return frozen and helps and not any(module is each for each in edited)


def _fitting(modules: Sequence[nn.Module], room: float) -> set[nn.Module]:
    """As many of some maps, in order, as have weights that fit, twice, into so many bytes together."""
    sizes = accumulate(2 * cast(Tensor, module.weight).nbytes for module in modules)
    return {module for module, size in zip(modules, sizes, strict=True) if size <= room}


class _Products(Protocol):
    """How to multiply with a weight `[d_out, d_in]`, which a module may store the other way round."""

    def fit(self, weight: Tensor) -> bool:
        """Whether they are products with this weight as it is now."""

    def times(self, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`states @ weight.T + bias`."""

    def times_transposed(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """`gradient @ weight`."""


def _held(module: nn.Module) -> _Products:
    """Products by a copy of a weight that stays as it is."""
    weight = cast(Tensor, module.weight)
    return _LaidOut(weight) if has_units(weight.dtype) else _Widened(type(module) is Conv1D, copied=weight)


def _as_it_is(module: nn.Module) -> _Products | None:
    """Products by a weight that may change; None where PyTorch's own are fast."""
    return None if has_units(cast(Tensor, module.weight).dtype) else _Widened(type(module) is Conv1D)


class _State:
    """A weight as it was when it was copied."""

    def __init__(self, weight: Tensor) -> None:
        self._weight, self._version, self._place = weight, weight._version, weight.data_ptr()

    def still(self, weight: Tensor) -> bool:
        """Whether this is the weight, neither written to nor moved since."""
        return weight is self._weight and weight._version == self._version and weight.data_ptr() == self._place


class _LaidOut:
    """By a bfloat16 weight's layouts: for products forwards now, backwards when a gradient first asks for it."""

    def __init__(self, weight: Tensor) -> None:
        self._state = _State(weight)
        self._forwards, self._backwards = _reordered(weight), cast(Tensor | None, None)

    def fit(self, weight: Tensor) -> bool:
        return self._state.still(weight)

    def times(self, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _by_layout(states, self._forwards, bias)

    def times_transposed(self, gradient: Tensor, weight: Tensor) -> Tensor:
        if self._backwards is None:
            self._backwards = _reordered(weight.T.contiguous())
        return _by_layout(gradient, self._backwards, None)


@torch.no_grad()
def _reordered(weight: Tensor) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(weight, None))


def _by_layout(states: Tensor, layout: Tensor, bias: Tensor | None) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(states, layout, bias, "none", [], ""))


class _Widened:
    """In float32 with a weight of 16 bits, some of its rows after others; the result is rounded once.

    A few rows at a time, as when a text is written token by token, wait for the weight more than for the processor:
    where oneDNN takes the weight as it is, half of the bytes are faster than the better instruction.

    Args:
        transposed: Whether the weight is stored as `[d_in, d_out]`.
        copied: A weight of which a float32 copy is kept.
    """

    def __init__(self, transposed: bool, copied: Tensor | None = None) -> None:
        self._transposed, self._state = transposed, None if copied is None else _State(copied)
        self._copies = None if copied is None else list(self._pieces(copied))
        self._by_library = {dtype for dtype in _HALVES if _is_by_library(dtype)}

    def fit(self, weight: Tensor) -> bool:
        return weight.dtype in _HALVES and (self._state is None or self._state.still(weight))

    def times(self, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if weight.dtype in self._by_library and states.numel() <= _FEW * states.shape[-1]:
            return linear(states, weight.T if self._transposed else weight, bias)
        wide = states.float()
        parts = [linear(wide, piece) for piece in self._copies or self._pieces(weight)]
        product = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return (product if bias is None else product.add_(bias)).to(states.dtype)

    def times_transposed(self, gradient: Tensor, weight: Tensor) -> Tensor:
        found, start = torch.zeros(()), 0
        for piece in self._copies or self._pieces(weight):
            found = found + gradient[..., start : start + len(piece)].float() @ piece
            start += len(piece)
        return found.to(gradient.dtype)

    @torch.no_grad()
    def _pieces(self, weight: Tensor) -> Iterator[Tensor]:
        """The weight `[d_out, d_in]` in float32, so many rows at a time that a piece is small."""
        rows = weight.T if self._transposed else weight
        return (piece.float() for piece in rows.split(max(1, _PIECE // max(1, rows.shape[1]))))


class _Forward:
    """What a linear map returns, by products of another kind.

    Args:
        module: The map.
        products: With its weight.
    """

    def __init__(self, module: nn.Module, products: _Products) -> None:
        self._module, self._products = module, products

    def __call__(self, input: Tensor) -> Tensor:  # by the name that PyTorch gives it
        weight, bias = cast(Tensor, self._module.weight), cast(Tensor | None, self._module.bias)
        trained = torch.is_grad_enabled() and any(each.requires_grad for each in self._module.parameters())
        # Autocast, a module that computes in another type, or has moved: let PyTorch say what it makes of it.
        alike = input.dtype == weight.dtype and input.device.type == weight.device.type == "cpu"
        if trained or not alike or not self._products.fit(weight):
            return cast(Tensor, type(self._module).forward(self._module, input))
        return cast(Tensor, _Product.apply(input, self._products, weight, bias))  # type: ignore[no-untyped-call]

    def __reduce__(self) -> tuple[Any, ...]:
        """A model that is copied or stored meanwhile takes its weights as they are: layouts can be neither."""
        return partial, (type(self._module).forward, self._module)


class _Product(torch.autograd.Function):
    """`states @ weight.T + bias` with a gradient for the states alone."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, products: _Products, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.products = products
        ctx.save_for_backward(weight)
        return products.times(states, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return ctx.products.times_transposed(gradients[0], weight), None, None, None
