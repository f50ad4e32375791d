"""How far apart the states are that a model's blocks leave in two ways, and what is said of a model where they are."""

from typing import NoReturn

import torch
from torch import Tensor, nn

from sphere_pl.errors import UserError
from sphere_pl.model.block_calls import BlockCalls, stream_of
from sphere_pl.model.language_model import LanguageModel

_ROUNDINGS = 16  # a difference of this many rounding errors of the model's dtype is none (float32 2e-6, bfloat16 0.12)
MISFITS = (
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    RuntimeError,
)  # of code that is called otherwise
_NUMBERS = {"layer_idx", "layer_id", "layer_number"}  # of its layer, as an attention module keeps it
LOST = 0.1  # of what a block adds: ways that round differently are closer, and a real loss is not


def kinds_of_blocks(lm: LanguageModel) -> list[int]:
    """One layer of each kind of block: of a class, with a matrix, and with ways and modules to read earlier tokens.

    All layers of a model whose parts were found on one block of each kind: a factor may be another in each.
    """
    if not lm.described:
        return list(range(lm.n_layers))
    architecture, first = lm.architecture, dict[tuple[object, ...], int]()
    reading = getattr(lm.config, "layer_types", None) or [None] * lm.n_layers
    for layer in range(lm.n_layers):
        block = lm.block(layer)
        mixers = architecture.mixers_in(block)
        ways = [_settings(block.get_submodule(path)) for path in mixers]
        kind = (type(block), reading[layer], architecture.projection_in(block), *mixers, *ways)
        first.setdefault(kind, layer)
    return list(first.values())


def _settings(mixer: nn.Module) -> frozenset[tuple[str, object]]:
    """What a module is given beside its layer's number: nothing else says which of GPT-Neo's attend to a window."""
    settings = vars(mixer).items()
    return frozenset(
        (name, value) for name, value in settings if isinstance(value, (int, float, str)) and name not in _NUMBERS
    )


def bound(lm: LanguageModel) -> float:
    """Relative difference up to which two states are one, in the model's own dtype."""
    return _ROUNDINGS * torch.finfo(lm.dtype).eps


def alike(lm: LanguageModel, state: Tensor, whole: Tensor, entering: Tensor) -> bool:
    """Whether a block leaves the same state in two ways, which round differently: only a real loss counts."""
    added = whole - entering.to(whole)
    return apart_by(state, whole) <= bound(lm) or apart_by(state - whole, torch.zeros_like(state), added) < LOST


def run_block(lm: LanguageModel, hidden: Tensor, calls: BlockCalls, layer: int) -> Tensor:
    """The residual stream that one block leaves, of `[rows, T, d]`."""
    return stream_of(lm.block(layer)(hidden, *calls.args[layer], **calls.kwargs[layer]))


def apart_by(found: Tensor, expected: Tensor, unit: Tensor | None = None) -> float:
    """Norm of the difference over that of what is expected, or of `unit`."""
    expected = expected.to(found.device).float()
    unit = expected if unit is None else unit.to(found.device).float()
    return float((found.float() - expected).norm() / unit.norm().clamp_min(1e-30))


def refuse(lm: LanguageModel, what: str, apart: float, fields: str) -> NoReturn:
    """Say which part differs, and which entry of an architecture describes it."""
    says = "is not what its architecture says" if lm.described else "cannot be edited as its parts are found"
    raise UserError(
        f"The model ({lm.model.config.model_type}) {says}: {what} (difference {apart:.2g}, "
        f"allowed {bound(lm):.1g} in {str(lm.dtype).removeprefix('torch.')}). To be corrected with "
        f"--model.architecture: {fields}."
    )
