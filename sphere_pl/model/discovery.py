"""Where a model whose family is in no table keeps its parts, found by what they do on one short prompt.

Blocks are the list whose entries are called one after the other; a module mixes tokens if what it says of a token
changes with another token; the matrix to edit is the linear map whose output the residual stream gains. Nothing is
taken from a name, so what is found serves code that nobody has seen. The check at load comes after it all the same.

Shapes: `T` tokens of the prompt, `d` hidden size.
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
from sphere_pl.model.architectures import Architecture, has_module
from sphere_pl.model.block_calls import stream_of

_ROUNDINGS = 8  # rounding errors within which two vectors are one
_ORDER = 1e-5  # relative difference that the order of a sum may make
_SMALL, _LARGE = 1e-3, 32.0  # rms of a stream beside which what blocks add is all there is; of a matrix's output
_FLOOD, _PASSES = 256.0, 0.5  # rms of a stream beside which what blocks add is little; how much of it that may be
_CLOSE = 1e-3  # relative difference between a number that was measured and the one that it is
_MOST_MIXERS = 8  # modules of one block that read earlier tokens
_ADVICE = "If it is a decoder whose blocks add to one residual stream, describe its parts with --model.architecture."


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


class _Matrix(NamedTuple):
    """A linear map whose output the stream gains: its path, its layout, and what lies between."""

    path: str
    fan_in_fan_out: bool
    norm: str
    scale: str


class _Parts(NamedTuple):
    """What one kind of block holds."""

    block: nn.Module
    mixers: tuple[str, ...]
    matrix: _Matrix | None
    experts: str


@torch.no_grad()
def discover(model: PreTrainedModel, ids: Tensor) -> Architecture:
    """Find the parts of a causal language model.

    Args:
        model: The model, in eval mode.
        ids: Tokens of a text, `[1, T]`.

    Raises:
        UserError: If it has no row of blocks that hand on one residual stream, no norm in front of its head, or no
            linear map that the stream gains from.
    """
    path, blocks, calls = _find_blocks(model, ids)
    norm, logit_scale = _find_output(model, ids, blocks)
    kinds = [_parts(model, blocks[layers[0]], calls[layers[0]]) for layers in _kinds(blocks)]
    return _architecture(model, f"{path}.{{}}", norm, logit_scale, kinds)


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


def _find_blocks(model: PreTrainedModel, ids: Tensor) -> tuple[str, list[nn.Module], list[Called]]:
    """The list of as many modules as there are layers, each called once, in their order, with a stream `[1, T, d]`."""
    count = int(getattr(model.config.get_text_config(), "num_hidden_layers", 0))
    lists = {path: list(each) for path, each in model.named_modules() if isinstance(each, nn.ModuleList)}
    lists = {path: each for path, each in lists.items() if len(each) == count}
    entries = {f"{path}.{layer}": block for path, each in lists.items() for layer, block in enumerate(each)}
    seen = watched(entries, lambda: model(input_ids=ids, use_cache=False))
    for path in sorted(lists, key=lambda path: -sum(p.numel() for block in lists[path] for p in block.parameters())):
        calls = [each for each in seen if each.path.rpartition(".")[0] == path]
        streams = [each.taken for each in calls]
        in_order = [each.path for each in calls] == [f"{path}.{layer}" for layer in range(count)]
        if in_order and all(each is not None and each.shape[:-1] == ids.shape for each in streams):
            return path, lists[path], calls
    raise UserError(
        f"The model ({model.config.model_type}) has no list of {count or 'its'} blocks that are called once each, in "
        f"their order, with one residual stream: facts cannot be edited where blocks are called again or in another "
        f"order, or hand on something else. {_ADVICE}"
    )


def _find_output(model: PreTrainedModel, ids: Tensor, blocks: list[nn.Module]) -> tuple[str, str]:
    """The norm between the last block and the head, and the name of the factor of the logits."""
    head = model.get_output_embeddings()
    if head is None:
        raise UserError(
            f"The model ({model.config.model_type}) names no head that makes logits of states "
            "(`get_output_embeddings`). Give --model.name a causal language model."
        )
    inside = {id(module) for block in blocks[:-1] for module in block.modules()}
    inside |= {id(module) for module in blocks[-1].modules()} - {id(blocks[-1])}
    outside = {path: module for path, module in model.named_modules() if id(module) not in inside}
    logits: list[Tensor] = []
    seen = watched(outside, lambda: logits.append(model(input_ids=ids, use_cache=False).logits))
    modules = dict(model.named_modules())
    last = next(each.given for each in seen if modules[each.path] is blocks[-1])
    entry = next(each for each in seen if modules[each.path] is head)
    for each in seen:
        if modules[each.path] is blocks[-1] or each.taken is None or not _equal(each.taken, last):
            continue
        factor = _factor_of(entry.taken, each.given)
        if factor is not None:
            after = _factor_of(_uncapped(model, logits[0]), entry.given) or 1.0
            return each.path, _named(factor * after, model.config.get_text_config(), model.config)
    raise UserError(
        f"Between the last block of the model ({model.config.model_type}) and its head there is more than one norm "
        f"and a factor, or no norm. {_ADVICE}"
    )


def _uncapped(model: PreTrainedModel, logits: Tensor) -> Tensor:
    """Logits as they are before a soft cap."""
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return cap * torch.atanh(logits.double() / cap).to(logits.dtype) if cap else logits


def _kinds(blocks: Sequence[nn.Module]) -> list[list[int]]:
    """Numbers of the blocks that are made of the same modules, those of most blocks first."""
    kinds: dict[Any, list[int]] = {}
    for layer, block in enumerate(blocks):
        key = tuple((path, type(module)) for path, module in block.named_modules())
        kinds.setdefault(key, []).append(layer)
    return sorted(kinds.values(), key=lambda layers: -len(layers))


def _parts(model: PreTrainedModel, block: nn.Module, call: Called) -> _Parts:
    hidden = cast(Tensor, call.taken)
    mixers = _find_mixers(model, block, call, hidden)
    low = hidden * (_SMALL / hidden.float().square().mean().sqrt().clamp_min(1e-30)).to(hidden.dtype)
    matrix = _find_matrix(model, block, call, low, mixers)
    return _Parts(block, tuple(mixers), matrix, "" if matrix else _experts(block, mixers))


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
        f"they add by their matrix cannot be told apart from the rest. {_ADVICE}"
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
        return _equal(one[:, -1], other[:, -1])
    return one.shape[0] != hidden.shape[1] or _equal(one[-1], other[-1])


def _tolerance(dtype: torch.dtype) -> float:
    """Relative difference within which two vectors are one."""
    return max(_ORDER, _ROUNDINGS * torch.finfo(dtype).eps)


def _equal(one: Tensor, other: Tensor | None) -> bool:
    if other is None or one.shape != other.shape:
        return False
    apart = (one.float() - other.float().to(one.device)).norm()
    return bool(apart <= _tolerance(one.dtype) * other.float().norm().to(one.device))


def _factor_of(one: Tensor | None, other: Tensor | None) -> float | None:
    """The number that `other` is multiplied by in `one`; None if it is not one number."""
    if one is None or other is None or one.numel() != other.numel():
        return None
    a, b = one.float().flatten(), other.float().flatten().to(one.device)
    factor = float(a @ b / (b @ b).clamp_min(1e-30))
    return factor if factor and _equal(a.to(one.dtype), (factor * b).to(one.dtype)) else None


def _find_matrix(
    model: PreTrainedModel, block: nn.Module, call: Called, hidden: Tensor, mixers: Sequence[str]
) -> _Matrix | None:
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
            return _Matrix(each.path, bool(_layout(inner[each.path], each)), *found)
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
            if _equal(expected.reshape(call.given.shape), call.given):
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
        factor = _close_factor(gained, part)
        if factor is not None:
            return name, _named(factor, block, model.config.get_text_config())
    return None


def _equal_rows(each: Called, answer: Tensor) -> bool:
    return (
        each.taken is not None
        and each.taken.numel() == answer.numel()
        and _equal(each.taken.reshape(answer.shape), answer)
    )


def _close_factor(gained: Tensor, part: Tensor | None) -> float | None:
    """The number that `part` is multiplied by in what the stream gains, which is rounded to its dtype."""
    if part is None or part.numel() != gained.numel():
        return None
    a, b = gained.flatten(), part.float().flatten()
    factor = float(a @ b / (b @ b).clamp_min(1e-30))
    apart = float((a - factor * b).norm() / (factor * b).norm().clamp_min(1e-30))
    return factor if factor and apart <= _tolerance(part.dtype) else None


def _named(factor: float, *places: object) -> str:
    """The name of a number of the model that is `factor`, or one over it; the number itself if none is; empty for 1.

    Example:
        >>> from types import SimpleNamespace
        >>> _named(0.125, SimpleNamespace(logits_scaling=8.0)), _named(0.25, SimpleNamespace(layers=4))
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


def _experts(block: nn.Module, mixers: Sequence[str]) -> str:
    """The module of a block that holds several matrices in one, as routed experts do; empty if none does."""
    for path, module in block.named_modules():
        if not any(path == mixer or path.startswith(f"{mixer}.") for mixer in mixers):
            stacked = any(parameter.ndim == 3 for parameter in module.parameters(recurse=False))
            if path and (stacked or isinstance(module, nn.ModuleList)):
                return str(path)
    return ""


def _architecture(
    model: PreTrainedModel, block: str, norm: str, logit_scale: str, kinds: Sequence[_Parts]
) -> Architecture:
    """What all kinds of blocks have in common; blocks whose matrix is reached in another way are left out."""
    mixers = list(dict.fromkeys(path for kind in kinds for path in kind.mixers))
    if not mixers:
        raise UserError(f"No block of the model ({model.config.model_type}) reads earlier tokens. {_ADVICE}")
    experts = next((kind.experts for kind in kinds if kind.experts), "mlp.experts")
    first = next((kind.matrix for kind in kinds if kind.matrix), _Matrix("", False, "", ""))
    norm_of_some = first.norm or next((kind.matrix.norm for kind in kinds if kind.matrix and kind.matrix.norm), "")
    if all(kind.matrix.norm == norm_of_some for kind in kinds if kind.matrix and has_module(kind.block, norm_of_some)):
        first = first._replace(norm=norm_of_some)  # other blocks have no such module
    others = [kind.matrix.path for kind in kinds if kind.matrix and kind.matrix.path != first.path]
    return Architecture(
        block,
        first.path,
        norm,
        attention=mixers[0],
        fan_in_fan_out=first.fan_in_fan_out,
        output_norm=first.norm,
        output_scale=first.scale,
        logit_scale=logit_scale,
        shared_expert=others[0] if others else "",
        experts=experts,
        mixers=tuple(mixers[1:]),
    )
