"""Whether a model is what its architecture says: looked at on one short prompt when it is loaded.

Editing takes a model apart: it runs blocks one by one, reads logits off states, and counts on what a block adds to the
residual stream by its matrix. Where a family's entry is wrong, or a release of transformers changes a model, all of
that would go wrong in silence. Each comparison has a bound in units of the rounding error of the model's own dtype.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from sphere_pl.errors import UserError
from sphere_pl.model.attention import gradient_attention, packs
from sphere_pl.model.block_calls import BlockCalls, stream_of
from sphere_pl.model.families import output_path
from sphere_pl.model.frozen_prefix import run_prefix
from sphere_pl.model.language_model import LONGEST, PROMPT, LanguageModel
from sphere_pl.model.output_path import OutputPath
from sphere_pl.model.packing import Suffixes, pack_calls
from sphere_pl.model.prefix_tree import batch_trees, prefix_trees
from sphere_pl.process.failures import out_of_memory

log = logging.getLogger(__name__)

_ROUNDINGS = 16  # a difference of this many rounding errors of the model's dtype is none (float32 2e-6, bfloat16 0.12)
_MISFITS = (
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    RuntimeError,
)  # of code that is called otherwise
_NUMBERS = {"layer_idx", "layer_id", "layer_number"}  # of its layer, as an attention module keeps it
_LOST = 0.1  # of what a block adds: ways that round differently are closer, and a real loss is not
_SMALL, _LARGE = 1e-3, 32.0  # rms of a stream beside which what blocks add is all there is; of a matrix's output


def check_parts(lm: LanguageModel) -> None:
    """Compare a model with what its architecture says of it.

    Raises:
        UserError: Naming the part that differs.
    """
    ids = torch.tensor([lm.tokenizer(PROMPT)["input_ids"][:LONGEST]], device=lm.device)
    with torch.no_grad():
        calls = lm.block_calls(ids, torch.ones_like(ids), torch.arange(ids.shape[1], device=ids.device)[None])
        states = [calls.hidden]
        for layer in range(lm.n_layers):
            states.append(lm.run(states[-1], calls, layer, layer + 1))
        _check_logits(lm, ids, states[-1])
        for layer in _kinds(lm):
            _check_stream(lm, calls, layer)
            _check_matrix(lm, calls, layer)
        _check_order(lm, calls, ids)
        _check_padding(lm, calls, ids)
        _settle_cache(lm, ids, states)
        _settle_masks(lm, ids, states)
        _settle_attention(lm, ids, calls, states)


@contextmanager
def taken_apart(model: PreTrainedModel) -> Iterator[None]:
    """Say of a model that breaks off while it is taken apart and checked that it does not fit its architecture.

    Raises:
        UserError: With the words of the model's own code.
    """
    try:
        yield
    except _MISFITS as error:
        if isinstance(error, UserError) or out_of_memory(error):
            raise
        raise UserError(
            f"The blocks of the model ({model.config.model_type}) cannot be run one by one as its architecture says "
            f"({type(error).__name__}: {error}). Correct block, projection, final_norm or attention of "
            "--model.architecture; a family whose blocks hand on more than the residual stream, or are not called in "
            "their order, cannot be edited."
        ) from error


def _kinds(lm: LanguageModel) -> list[int]:
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


def _bound(lm: LanguageModel) -> float:
    return _ROUNDINGS * torch.finfo(lm.dtype).eps


def _check_logits(lm: LanguageModel, ids: Tensor, last: Tensor) -> None:
    """The logits of the blocks run one by one, the final norm, the head and its factor are the model's own."""
    own = lm.model(input_ids=ids, use_cache=False).logits.float()
    found = lm.logits(last).to(own.device)
    apart = float((found - own).abs().max() / own.abs().max().clamp_min(1e-30))
    if not apart <= _bound(lm):
        _refuse(
            lm,
            f"the logits of its blocks, {lm.architecture.final_norm} and the head are not the model's own",
            apart,
            "final_norm, or logit_scale (a number of the configuration by which logits are multiplied, or '1/' and its "
            "name)",
        )


def _check_stream(lm: LanguageModel, calls: BlockCalls, layer: int) -> None:
    """A block whose parts add nothing returns what enters it."""
    block, entering = lm.block(layer), _entering(calls, layer)
    for parts in _adding_parts(lm, block):
        with _answering(dict.fromkeys(parts, torch.zeros_like), block):
            left = _run(lm, entering, calls, layer)
            apart = _apart(left, entering)
            if not lm.described:  # a bias that such a block adds by itself changes nothing that is read off it
                other = entering.flip(-1)
                left = _run(lm, other, calls, layer) - left
                apart = min(apart, _apart(left, other - entering) / _ROUNDINGS)
        if apart <= _bound(lm):
            return
    _refuse(
        lm,
        f"block {layer} changes the residual stream when {' and '.join(parts)} add nothing to it",
        apart,
        "attention, mixers or projection; a family that norms or scales the stream itself cannot be edited",
    )


def _adding_parts(lm: LanguageModel, block: nn.Module) -> list[list[str]]:
    """Paths of the modules of a block that add to the stream.

    Where no table names the MLP, what mixes tokens and the edited matrix; or, with experts beside it, all that hold
    matrices.
    """
    architecture = lm.architecture
    mixers = architecture.mixers_in(block)
    if lm.described:
        return [[path for path in (*mixers, architecture.mlp_in(block)) if path]]
    children = [
        (f"{name}.{inner}" if inner else name, module)
        for name, child in block.named_children()
        for inner, module in (child.named_children() if isinstance(child, nn.ModuleList) else [("", child)])
    ]
    holding = [path for path, module in children if any(parameter.ndim > 1 for parameter in module.parameters())]
    return [[path for path in (*mixers, architecture.projection_in(block)) if path], holding]


def _check_matrix(lm: LanguageModel, calls: BlockCalls, layer: int) -> None:
    """What the output of the matrix adds to the stream is what the output norm and the factor make of it."""
    block, architecture = lm.block(layer), lm.architecture
    path = architecture.projection_in(block)
    if not path:
        return  # routed experts: refused if they are to be edited
    _check_shape(lm, path, block, calls.hidden.shape[-1])
    _check_linear(lm, path, calls, layer)
    output, entering = output_path(architecture, lm.config, block), _entering(calls, layer)
    answer = (_LARGE * torch.randn(entering.shape, generator=torch.Generator().manual_seed(0))).to(entering)
    added = []
    for part in (answer, torch.zeros_like(answer)):
        answers: dict[str, Callable[[Tensor], Tensor]] = dict.fromkeys(architecture.mixers_in(block), torch.zeros_like)
        with _answering({**answers, path: partial(_instead, part)}, block):
            added.append(_run(lm, entering, calls, layer).float())
    apart = _apart(added[0] - added[1], output.gain(answer))
    if not apart <= _bound(lm):
        _refuse(
            lm,
            f"what {path} of block {layer} puts out is not what the residual stream gains",
            apart,
            "output_norm (the norm that the MLP's output passes through) or output_scale (its factor)",
        )
    _check_norm(lm, output, answer)


def _entering(calls: BlockCalls, layer: int) -> Tensor:
    """The prompt's embeddings, so small that rounding beside them hides nothing that a block adds."""
    hidden = calls.hidden.to(calls.devices[layer])
    return hidden * (_SMALL / hidden.float().square().mean().sqrt().clamp_min(1e-30)).to(hidden.dtype)


def _check_shape(lm: LanguageModel, path: str, block: nn.Module, width: int) -> None:
    """The matrix writes vectors as wide as the stream."""
    weight = getattr(block.get_submodule(path), "weight", None)
    shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
    if len(shape) != 2 or shape[1 if lm.architecture.fan_in_fan_out else 0] != width:
        raise UserError(
            f"The architecture names {path!r} as the matrix to edit, whose weight has the shape {list(shape)}: no "
            f"matrix that writes the {width} numbers of the residual stream. Correct `projection` of "
            "--model.architecture, or `fan_in_fan_out` if it is stored the other way round."
        )


def _check_linear(lm: LanguageModel, path: str, calls: BlockCalls, layer: int) -> None:
    """What the module puts out is its weight times what it is called with, which is what is solved for."""
    module: Any = lm.block(layer).get_submodule(path)
    seen: list[tuple[Tensor, Tensor]] = []
    hook = module.register_forward_hook(lambda _, args, output: seen.append((args[0], output.clone())))
    try:
        _run(lm, _entering(calls, layer) / _SMALL, calls, layer)
    finally:
        hook.remove()
    weight = module.weight.T if lm.architecture.fan_in_fan_out else module.weight
    bias = getattr(module, "bias", None)
    apart = max((_apart(put, functional.linear(key, weight, bias)) for key, put in seen), default=0.0)
    if not apart < min(_LOST, 32 * _bound(lm)):
        _refuse(lm, f"{path} of block {layer} puts out something else than its weight makes of its input", apart,
                "projection, as a plain linear map")  # fmt: skip


def _instead(part: Tensor, found: Tensor) -> Tensor:
    return part.view_as(found).clone()  # some blocks add to what a matrix puts out in place


def _divided(answer: Tensor) -> Tensor:
    return answer.float() / answer.float().square().mean(-1, keepdim=True).sqrt()


def _check_norm(lm: LanguageModel, output: OutputPath, answer: Tensor) -> None:
    """The output norm divides by the rms: what can be reached through it is worked out from that."""
    apart = _apart(output.gain(answer), output.gains(answer) * _divided(answer)) if output.norm is not None else 0.0
    if not apart <= _bound(lm):
        name = lm.architecture.output_norm
        _refuse(lm, f"the output norm {name} is no RMS norm", apart, "nothing: such a family cannot be edited yet")


def _settle_cache(lm: LanguageModel, ids: Tensor, states: list[Tensor]) -> None:
    """See whether tokens can follow cached ones; let a model that is in no table and loses them do without.

    Raises:
        UserError: If the model's architecture says that its blocks keep keys and values, and they do not.
    """
    if not lm.recurrent:
        try:
            _check_prefix(lm, ids, states)
        except UserError:
            if lm.described:
                raise
            lm.architecture = lm.architecture._replace(recurrent=True)
    if lm.described and not lm.recurrent:
        return
    try:
        lm.cached = _continues(lm, ids, states[-1])
    except _MISFITS as error:  # of a cache that the model does not know
        if out_of_memory(error):
            raise
        lm.cached = False
    if not lm.cached:
        log.warning(
            "The model (%s) does not take up what it has cached: it reads each text from its beginning for every token "
            "that it writes, which is slower and changes no result.",
            lm.model.config.model_type,
        )


def _continues(lm: LanguageModel, ids: Tensor, last: Tensor) -> bool:
    """Whether the last tokens of two rows, one with padding, are as in the whole prompt after the model's own cache."""
    cut, padding = ids.shape[1] - 2, 2
    rows = torch.cat([ids[:, :padding], ids], dim=1).repeat(2, 1)
    mask = torch.ones_like(rows)
    mask[:, :padding] = 0
    positions, cache = (mask.cumsum(1) - 1).clamp_min(0), lm.new_cache()
    found = []
    for start, stop in ((0, cut + padding), *((at, at + 1) for at in range(cut + padding, rows.shape[1]))):
        calls = lm.block_calls(rows[:, start:stop], mask[:, :stop], positions[:, start:stop], cache)
        found.append(lm.run(calls.hidden, calls, 0, lm.n_layers)[:, -1:])
    return _alike(lm, torch.cat(found, dim=1)[:1], last[:, cut - 1 :], torch.zeros_like(last[:, cut - 1 :]))


def _settle_masks(lm: LanguageModel, ids: Tensor, states: list[Tensor]) -> None:
    """Let a model have rows of its own only, if a text beside another that begins alike has other states in one row."""
    if not lm.takes_masks(2 * ids.shape[1]):
        return
    cut, whole = ids.shape[1] // 2, ids[0].tolist()
    (tree,) = prefix_trees([whole, [*whole[:cut], *whole[:cut]]], 2 * len(whole))
    path = tree.paths[0]
    try:
        calls = lm.block_calls(*batch_trees([tree], lm.pad_id, lm.dtype, lm.device))
        hidden = calls.hidden
        for layer in range(lm.n_layers):
            hidden = lm.run(hidden, calls, layer, layer + 1)
            lm.own_masks |= not _alike(lm, hidden[:, path], states[layer + 1], states[layer])
    except _MISFITS as error:  # of blocks that make a mask of their own out of what they are given
        if out_of_memory(error):
            raise
        lm.own_masks = True


def _check_prefix(lm: LanguageModel, ids: Tensor, states: list[Tensor]) -> None:
    """Tokens after cached keys and values have the states that they have in the whole prompt."""
    cut = ids.shape[1] // 2
    positions = torch.arange(cut, ids.shape[1], device=ids.device)[None]
    try:
        prefix = run_prefix(lm, ids[:, :cut], torch.ones_like(ids[:, :cut]))
        calls = prefix.calls(lm, ids[:, cut:], torch.ones_like(ids), positions)
        found = {layer: _run(lm, states[layer][:, cut:].to(calls.devices[layer]), calls, layer) for layer in _kinds(lm)}
    except _MISFITS as error:
        if out_of_memory(error):
            raise
        _refuse(lm, f"its blocks do not take keys and values from a cache ({error})", 1.0, "recurrent, as true")
    for layer, state in found.items():
        whole = states[layer + 1][:, cut:]
        if not _alike(lm, state, whole, states[layer][:, cut:]):
            _refuse(lm, f"block {layer} forgets what is cached", _apart(state, whole), "recurrent, as true")


def _check_order(lm: LanguageModel, calls: BlockCalls, ids: Tensor) -> None:
    """Tokens do not see what comes after them."""
    cut = max(1, ids.shape[1] // 2)
    before = lm.block_calls(ids[:, :cut], torch.ones_like(ids[:, :cut]), torch.arange(cut, device=ids.device)[None])
    for layer in _kinds(lm):
        entering = _entering(calls, layer)
        apart = _apart(_run(lm, entering[:, :cut], before, layer), _run(lm, entering, calls, layer)[:, :cut])
        if not apart < _LOST:
            what = "nothing: what is edited is a model that writes, and reads from left to right alone"
            _refuse(lm, f"block {layer} lets tokens see those that come after them", apart, what)


def _check_padding(lm: LanguageModel, calls: BlockCalls, ids: Tensor) -> None:
    """Tokens after padding on the left have the states that they have without it.

    Two rows are padded: some recurrent blocks take a row that stands alone for one without padding.
    """
    cut = max(1, ids.shape[1] // 2)
    mask = torch.ones(2, cut + ids.shape[1], dtype=torch.long, device=ids.device)
    mask[:, :cut] = 0
    rows = torch.cat([ids[:, :cut], ids], dim=1).repeat(2, 1)
    padded = lm.block_calls(rows, mask, (mask.cumsum(1) - 1).clamp_min(0))
    apart = _apart(padded.hidden[:1, cut:], calls.hidden)
    what = "nothing: rows of several lengths would be wrong in such a family, which cannot be edited"
    if not apart <= _bound(lm):
        _refuse(lm, "its embeddings take positions of their own and not those that are given", apart, what)
    for layer in _kinds(lm):
        entering = _entering(calls, layer)
        after = torch.cat([entering[:, :cut], entering], dim=1).repeat(2, 1, 1)
        apart = _apart(_run(lm, after, padded, layer)[:1, cut:], _run(lm, entering, calls, layer))
        if not apart < _LOST:
            _refuse(lm, f"block {layer} reads what is masked", apart, what)


def _settle_attention(lm: LanguageModel, ids: Tensor, calls: BlockCalls, states: list[Tensor]) -> None:
    """Let a model attend by itself for gradients as well if its blocks leave other states by `gradient_attention`."""
    cut = ids.shape[1] // 2
    ways = [(calls, states)]
    try:
        if packs(lm):
            ways.append((_packed_twice(lm, ids, cut), [state[:, cut:].repeat(1, 2, 1) for state in states]))
        with gradient_attention(lm):
            lm.own_attention = not all(
                _alike(lm, _run(lm, passed[layer].to(how.devices[layer]), how, layer), passed[layer + 1], passed[layer])
                for how, passed in ways
                for layer in _kinds(lm)
            )
    except _MISFITS as error:  # of blocks that look into the mask, which may be no tensor then
        if out_of_memory(error):
            raise
        lm.own_attention = True


def _packed_twice(lm: LanguageModel, ids: Tensor, cut: int) -> BlockCalls:
    """How the blocks are called for the columns from `cut` on, after the others, packed beside themselves."""
    prefix = run_prefix(lm, ids[:, :cut], torch.ones_like(ids[:, :cut]))
    positions = torch.arange(cut, ids.shape[1], device=ids.device)[None]
    rows = Suffixes(ids[:, cut:], positions, prefix, prefix.calls(lm, ids[:, cut:], torch.ones_like(ids), positions))
    return pack_calls(lm, [rows, rows])


def _alike(lm: LanguageModel, state: Tensor, whole: Tensor, entering: Tensor) -> bool:
    """Whether a block leaves the same state in two ways, which round differently: only a real loss counts."""
    added = whole - entering.to(whole)
    return _apart(state, whole) <= _bound(lm) or _apart(state - whole, torch.zeros_like(state), added) < _LOST


def _run(lm: LanguageModel, hidden: Tensor, calls: BlockCalls, layer: int) -> Tensor:
    return stream_of(lm.block(layer)(hidden, *calls.args[layer], **calls.kwargs[layer]))


def _apart(found: Tensor, expected: Tensor, unit: Tensor | None = None) -> float:
    """Norm of the difference over that of what is expected, or of `unit`."""
    expected = expected.to(found.device).float()
    unit = expected if unit is None else unit.to(found.device).float()
    return float((found.float() - expected).norm() / unit.norm().clamp_min(1e-30))


@contextmanager
def _answering(answers: dict[str, Callable[[Tensor], Tensor]], block: nn.Module) -> Iterator[None]:
    """Let modules of a block return something else than what they found, at the first place of a tuple."""
    with ExitStack() as stack:
        for path, answer in answers.items():

            def hook(_: nn.Module, __: Any, output: Any, answer: Callable[[Tensor], Tensor] = answer) -> Any:
                return (answer(output[0]), *output[1:]) if isinstance(output, tuple) else answer(output)

            stack.callback(block.get_submodule(path).register_forward_hook(hook).remove)
        yield


def _refuse(lm: LanguageModel, what: str, apart: float, fields: str) -> NoReturn:
    """Say which part differs, and which entry of an architecture describes it."""
    says = "is not what its architecture says" if lm.described else "cannot be edited as its parts are found"
    raise UserError(
        f"The model ({lm.model.config.model_type}) {says}: {what} (difference {apart:.2g}, "
        f"allowed {_bound(lm):.1g} in {str(lm.dtype).removeprefix('torch.')}). To be corrected with "
        f"--model.architecture: {fields}."
    )
