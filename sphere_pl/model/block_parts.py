"""The parts of one block, found by what they do: what mixes tokens, and the matrix whose output the stream gains.

Shapes: `T` tokens of one prompt, `d` hidden size; a stream is `[1, T, d]`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from sphere_pl.errors import UserError
from sphere_pl.model.block_calls import stream_of
from sphere_pl.model.watching import Called, close_factor, equal, named_factor, watched

_SMALL, _LARGE = 1e-3, 32.0  # rms of a stream beside which what blocks add is all there is; of a matrix's output
_FLOOD, _PASSES = 256.0, 0.5  # rms of a stream beside which what blocks add is little; how much of it that may be
_MOST_MIXERS = 8  # modules of one block that read earlier tokens
ADVICE = "If it is a decoder whose blocks add to one residual stream, describe its parts with --model.architecture."


class Matrix(NamedTuple):
    """A linear map whose output the stream gains: its path, its layout, and what lies between."""

    path: str
    fan_in_fan_out: bool
    norm: str
    scale: str


class Parts(NamedTuple):
    """What one kind of block holds."""

    block: nn.Module
    mixers: tuple[str, ...]
    matrix: Matrix | None
    experts: str


def find_parts(model: PreTrainedModel, block: nn.Module, call: Called) -> Parts:
    """Find the parts of a block, as it was called on a prompt.

    Raises:
        UserError: If it mixes tokens outside of any module of its own.
    """
    hidden = cast(Tensor, call.taken)
    mixers = _find_mixers(model, block, call, hidden)
    low = hidden * (_SMALL / hidden.float().square().mean().sqrt().clamp_min(1e-30)).to(hidden.dtype)
    matrix = _find_matrix(model, block, call, low, mixers)
    return Parts(block, tuple(mixers), matrix, "" if matrix else _experts(block, mixers))


def _again(block: nn.Module, call: Called, hidden: Tensor, answers: Mapping[str, Callable[[Tensor], Tensor]]) -> Tensor:
    """Run a block on another stream while modules of it answer something else."""
    with ExitStack() as stack:
        for path, answer in answers.items():

            def hook(_: nn.Module, __: Any, output: Any, answer: Callable[[Tensor], Tensor] = answer) -> Any:
                return (answer(output[0]), *output[1:]) if isinstance(output, tuple) else answer(output)

            stack.callback(block.get_submodule(path).register_forward_hook(hook).remove)
        named = "hidden_states" in call.kwargs
        args = call.args if named else (hidden, *call.args[1:])
        kwargs = {**call.kwargs, "hidden_states": hidden} if named else call.kwargs
        return stream_of(block(*args, **kwargs)).clone()


def _find_mixers(model: PreTrainedModel, block: nn.Module, call: Called, hidden: Tensor) -> list[str]:
    """Paths of the outermost modules of a block whose output for a token changes with another token alone."""
    other = hidden.flip(-1) + hidden.float().std().to(hidden.dtype)
    other[:, -1] = hidden[:, -1]  # all tokens are others but the last, which is looked at
    inner = {path: module for path, module in block.named_modules() if path}
    mixers: list[str] = []
    while len(mixers) <= _MOST_MIXERS:
        zeros = dict.fromkeys(mixers, torch.zeros_like)
        first, second = list[Tensor](), list[Tensor]()
        once = watched(inner, lambda zeros=zeros, out=first: out.append(_again(block, call, hidden, zeros)))  # type: ignore[misc]
        twice = watched(inner, lambda zeros=zeros, out=second: out.append(_again(block, call, other, zeros)))  # type: ignore[misc]
        if _last_equal(first[0], second[0], hidden):
            return mixers
        found = [
            a.path
            for a, b in zip(once, twice, strict=False)
            if a.path == b.path
            and not any(a.path == mixer or a.path.startswith(f"{mixer}.") for mixer in mixers)
            and _last_equal(a.taken, b.taken, hidden)
            and not _last_equal(a.given, b.given, hidden)
        ]
        if not found:
            break
        outermost = min(found, key=lambda path: path.count("."))
        mixers.append(_without_stream(block, call, hidden, mixers, outermost))
    raise UserError(
        f"The blocks of the model ({model.config.model_type}) mix tokens outside of any module of theirs, so that what "
        f"they add by their matrix cannot be told apart from the rest. {ADVICE}"
    )


def _without_stream(block: nn.Module, call: Called, hidden: Tensor, mixers: Sequence[str], path: str) -> str:
    """A module that mixes tokens; if the stream passes through it as well (BLOOM's), its last linear map."""
    size = hidden.float().square().mean().sqrt().clamp_min(1e-30)
    large = hidden * (_FLOOD / size).to(hidden.dtype)

    def passes(*silent: str) -> bool:
        left = _again(block, call, large, dict.fromkeys((*mixers, *silent), torch.zeros_like))
        return bool((left - large).float().norm() < _PASSES * large.float().norm())

    if passes(path) or not passes():
        return path
    inner = [f"{path}.{name}" for name, module in block.get_submodule(path).named_modules() if name and _width(module)]
    return next((each for each in reversed(inner) if passes(each)), path)


def _width(module: nn.Module) -> bool:
    """Whether a module has a matrix of its own."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2


def _last_equal(one: Tensor | None, other: Tensor | None, hidden: Tensor) -> bool:
    """Whether states `[1, T, ...]` or `[T, ...]` are the same for the last token; True if they are none."""
    if one is None or other is None or one.shape != other.shape:
        return True
    if one.shape[:2] == hidden.shape[:2]:
        return equal(one[:, -1], other[:, -1])
    return one.shape[0] != hidden.shape[1] or equal(one[-1], other[-1])


def _find_matrix(
    model: PreTrainedModel, block: nn.Module, call: Called, hidden: Tensor, mixers: Sequence[str]
) -> Matrix | None:
    """The widest linear map outside of mixers whose output the stream gains, through a norm and a factor at most."""
    zeros: dict[str, Callable[[Tensor], Tensor]] = dict.fromkeys(mixers, torch.zeros_like)
    inner = {path: module for path, module in block.named_modules() if path}
    seen = watched(inner, lambda: _again(block, call, hidden, zeros))
    often = Counter(each.path for each in seen)
    maps = [
        each
        for each in seen
        if often[each.path] == 1
        and not any(each.path == mixer or each.path.startswith(f"{mixer}.") for mixer in mixers)
        and each.given is not None
        and each.given.numel() == hidden.numel()
        and _layout(inner[each.path], each) is not None
    ]
    maps.reverse()  # of two that are as wide the last
    for each in sorted(maps, key=lambda each: -cast(Tensor, each.taken).shape[-1]):
        found = _reaches(model, block, call, hidden, zeros, each.path)
        if found is not None:
            return Matrix(each.path, bool(_layout(inner[each.path], each)), *found)
    return None


def _layout(module: nn.Module, call: Called) -> bool | None:
    """Whether a linear map stores its weight as `[d_in, d_out]`; None if a module is no linear map."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or call.taken is None or call.given is None:
        return None
    for turned in (False, True):
        matrix = weight.T if turned else weight
        if matrix.shape == (call.given.shape[-1], call.taken.shape[-1]):
            expected = functional.linear(call.taken.to(weight.dtype), matrix, bias)
            if equal(expected.reshape(call.given.shape), call.given):
                return turned
    return None


def _reaches(
    model: PreTrainedModel,
    block: nn.Module,
    call: Called,
    hidden: Tensor,
    zeros: Mapping[str, Callable[[Tensor], Tensor]],
    path: str,
) -> tuple[str, str] | None:
    """The norm and the factor through which the stream gains a module's output; None if it gains something else."""
    answer = _LARGE * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
    # No two tokens are as large, so that a norm makes another vector of them than a factor does.
    answer = (answer * torch.linspace(0.5, 2, hidden.shape[1])[:, None]).to(hidden)
    norms = {name: module for name, module in block.named_modules() if name and not name.startswith(f"{path}.")}
    out: list[Tensor] = []

    def run(part: Tensor) -> None:
        said = {**zeros, path: lambda found: part.view_as(found).clone()}
        out.append(_again(block, call, hidden, said))

    seen = watched(norms, lambda: run(answer))
    run(torch.zeros_like(answer))
    gained = out[0].float() - out[1].float()
    passed = [each for each in seen if each.taken is not None and each.path not in zeros and _equal_rows(each, answer)]
    for name, part in [("", answer), *((each.path, each.given) for each in reversed(passed))]:
        factor = close_factor(gained, part)
        if factor is not None:
            return name, named_factor(factor, block, model.config.get_text_config())
    return None


def _equal_rows(each: Called, answer: Tensor) -> bool:
    return (
        each.taken is not None
        and each.taken.numel() == answer.numel()
        and equal(each.taken.reshape(answer.shape), answer)
    )


def _experts(block: nn.Module, mixers: Sequence[str]) -> str:
    """The module of a block that holds several matrices in one, as routed experts do; empty if none does."""
    for path, module in block.named_modules():
        if not any(path == mixer or path.startswith(f"{mixer}.") for mixer in mixers):
            stacked = any(parameter.ndim == 3 for parameter in module.parameters(recurse=False))
            if path and (stacked or isinstance(module, nn.ModuleList)):
                return str(path)
    return ""
