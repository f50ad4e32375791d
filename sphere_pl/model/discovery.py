"""Where a model whose family is in no table keeps its parts, found by what they do on one short prompt.

Blocks are the list whose entries are called one after the other; a module mixes tokens if what it says of a token
changes with another token; the matrix to edit is the linear map whose output the residual stream gains. Nothing is
taken from a name, so what is found serves code that nobody has seen. The check at load comes after it all the same.

Shapes: `T` tokens of the prompt, `d` hidden size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sphere_pl.errors import UserError
from sphere_pl.model.architectures import Architecture, has_module
from sphere_pl.model.block_parts import ADVICE, Matrix, Parts, find_parts
from sphere_pl.model.watching import Called, equal, factor_of, named_factor, watched


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
    kinds = [find_parts(model, blocks[layers[0]], calls[layers[0]]) for layers in _kinds(blocks)]
    return _architecture(model, f"{path}.{{}}", norm, logit_scale, kinds)


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
        f"order, or hand on something else. {ADVICE}"
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
        if modules[each.path] is blocks[-1] or each.taken is None or not equal(each.taken, last):
            continue
        factor = factor_of(entry.taken, each.given)
        if factor is not None:
            after = factor_of(_uncapped(model, logits[0]), entry.given) or 1.0
            return each.path, named_factor(factor * after, model.config.get_text_config(), model.config)
    raise UserError(
        f"Between the last block of the model ({model.config.model_type}) and its head there is more than one norm "
        f"and a factor, or no norm. {ADVICE}"
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


def _architecture(
    model: PreTrainedModel, block: str, norm: str, logit_scale: str, kinds: Sequence[Parts]
) -> Architecture:
    """What all kinds of blocks have in common; blocks whose matrix is reached in another way are left out."""
    mixers = list(dict.fromkeys(path for kind in kinds for path in kind.mixers))
    if not mixers:
        raise UserError(f"No block of the model ({model.config.model_type}) reads earlier tokens. {ADVICE}")
    experts = next((kind.experts for kind in kinds if kind.experts), "mlp.experts")
    first = next((kind.matrix for kind in kinds if kind.matrix), Matrix("", False, "", ""))
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
