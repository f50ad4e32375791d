"""Whether a model is what its architecture says: looked at on one short prompt when it is loaded.

Editing takes a model apart: it runs blocks one by one, reads logits off states, and counts on what a block adds to the
residual stream by its matrix. Where a family's entry is wrong, or a release of transformers changes a model, all of
that would go wrong in silence. Each comparison has a bound in units of the rounding error of the model's own dtype.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from sphere_pl.errors import UserError
from sphere_pl.model.block_calls import BlockCalls
from sphere_pl.model.differences import LOST, MISFITS, apart_by, bound, kinds_of_blocks, refuse, run_block
from sphere_pl.model.families import output_path
from sphere_pl.model.language_model import LONGEST, PROMPT, LanguageModel
from sphere_pl.model.output_path import OutputPath
from sphere_pl.model.settling import settle_attention, settle_cache, settle_masks
from sphere_pl.process.failures import out_of_memory

log = logging.getLogger(__name__)

_ROUNDINGS = 16  # a difference of this many rounding errors of the model's dtype is none (float32 2e-6, bfloat16 0.12)
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
        for layer in kinds_of_blocks(lm):
            _check_stream(lm, calls, layer)
            _check_matrix(lm, calls, layer)
        _check_order(lm, calls, ids)
        _check_padding(lm, calls, ids)
        settle_cache(lm, ids, states)
        settle_masks(lm, ids, states)
        settle_attention(lm, ids, calls, states)


@contextmanager
def taken_apart(model: PreTrainedModel) -> Iterator[None]:
    """Say of a model that breaks off while it is taken apart and checked that it does not fit its architecture.

    Raises:
        UserError: With the words of the model's own code.
    """
    try:
        yield
    except MISFITS as error:
        if isinstance(error, UserError) or out_of_memory(error):
            raise
        raise UserError(
            f"The blocks of the model ({model.config.model_type}) cannot be run one by one as its architecture says "
            f"({type(error).__name__}: {error}). Correct block, projection, final_norm or attention of "
            "--model.architecture; a family whose blocks hand on more than the residual stream, or are not called in "
            "their order, cannot be edited."
        ) from error


def _check_logits(lm: LanguageModel, ids: Tensor, last: Tensor) -> None:
    """The logits of the blocks run one by one, the final norm, the head and its factor are the model's own."""
    own = lm.model(input_ids=ids, use_cache=False).logits.float()
    found = lm.logits(last).to(own.device)
    apart = float((found - own).abs().max() / own.abs().max().clamp_min(1e-30))
    if not apart <= bound(lm):
        refuse(
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
            left = run_block(lm, entering, calls, layer)
            apart = apart_by(left, entering)
            if not lm.described:  # a bias that such a block adds by itself changes nothing that is read off it
                other = entering.flip(-1)
                left = run_block(lm, other, calls, layer) - left
                apart = min(apart, apart_by(left, other - entering) / _ROUNDINGS)
        if apart <= bound(lm):
            return
    refuse(
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
            added.append(run_block(lm, entering, calls, layer).float())
    apart = apart_by(added[0] - added[1], output.gain(answer))
    if not apart <= bound(lm):
        refuse(
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
        run_block(lm, _entering(calls, layer) / _SMALL, calls, layer)
    finally:
        hook.remove()
    weight = module.weight.T if lm.architecture.fan_in_fan_out else module.weight
    bias = getattr(module, "bias", None)
    apart = max((apart_by(put, functional.linear(key, weight, bias)) for key, put in seen), default=0.0)
    if not apart < min(LOST, 32 * bound(lm)):
        refuse(lm, f"{path} of block {layer} puts out something else than its weight makes of its input", apart,
                "projection, as a plain linear map")  # fmt: skip


def _instead(part: Tensor, found: Tensor) -> Tensor:
    return part.view_as(found).clone()  # some blocks add to what a matrix puts out in place


def _divided(answer: Tensor) -> Tensor:
    return answer.float() / answer.float().square().mean(-1, keepdim=True).sqrt()


def _check_norm(lm: LanguageModel, output: OutputPath, answer: Tensor) -> None:
    """The output norm divides by the rms: what can be reached through it is worked out from that."""
    apart = apart_by(output.gain(answer), output.gains(answer) * _divided(answer)) if output.norm is not None else 0.0
    if not apart <= bound(lm):
        name = lm.architecture.output_norm
        refuse(lm, f"the output norm {name} is no RMS norm", apart, "nothing: such a family cannot be edited yet")


def _check_order(lm: LanguageModel, calls: BlockCalls, ids: Tensor) -> None:
    """Tokens do not see what comes after them."""
    cut = max(1, ids.shape[1] // 2)
    before = lm.block_calls(ids[:, :cut], torch.ones_like(ids[:, :cut]), torch.arange(cut, device=ids.device)[None])
    for layer in kinds_of_blocks(lm):
        entering = _entering(calls, layer)
        apart = apart_by(
            run_block(lm, entering[:, :cut], before, layer), run_block(lm, entering, calls, layer)[:, :cut]
        )
        if not apart < LOST:
            what = "nothing: what is edited is a model that writes, and reads from left to right alone"
            refuse(lm, f"block {layer} lets tokens see those that come after them", apart, what)


def _check_padding(lm: LanguageModel, calls: BlockCalls, ids: Tensor) -> None:
    """Tokens after padding on the left have the states that they have without it.

    Two rows are padded: some recurrent blocks take a row that stands alone for one without padding.
    """
    cut = max(1, ids.shape[1] // 2)
    mask = torch.ones(2, cut + ids.shape[1], dtype=torch.long, device=ids.device)
    mask[:, :cut] = 0
    rows = torch.cat([ids[:, :cut], ids], dim=1).repeat(2, 1)
    padded = lm.block_calls(rows, mask, (mask.cumsum(1) - 1).clamp_min(0))
    apart = apart_by(padded.hidden[:1, cut:], calls.hidden)
    what = "nothing: rows of several lengths would be wrong in such a family, which cannot be edited"
    if not apart <= bound(lm):
        refuse(lm, "its embeddings take positions of their own and not those that are given", apart, what)
    for layer in kinds_of_blocks(lm):
        entering = _entering(calls, layer)
        after = torch.cat([entering[:, :cut], entering], dim=1).repeat(2, 1, 1)
        apart = apart_by(run_block(lm, after, padded, layer)[:1, cut:], run_block(lm, entering, calls, layer))
        if not apart < LOST:
            refuse(lm, f"block {layer} reads what is masked", apart, what)


@contextmanager
def _answering(answers: dict[str, Callable[[Tensor], Tensor]], block: nn.Module) -> Iterator[None]:
    """Let modules of a block return something else than what they found, at the first place of a tuple."""
    with ExitStack() as stack:
        for path, answer in answers.items():

            def hook(_: nn.Module, __: Any, output: Any, answer: Callable[[Tensor], Tensor] = answer) -> Any:
                return (answer(output[0]), *output[1:]) if isinstance(output, tuple) else answer(output)

            stack.callback(block.get_submodule(path).register_forward_hook(hook).remove)
        yield
