"""Which ways of computing a model goes along with: a cache, masks, attention for gradients; found out at load."""

import logging

import torch
from torch import Tensor

from sphere_pl.errors import UserError
from sphere_pl.model.attention import gradient_attention, packs
from sphere_pl.model.block_calls import BlockCalls
from sphere_pl.model.differences import MISFITS, alike, apart_by, kinds_of_blocks, refuse, run_block
from sphere_pl.model.frozen_prefix import run_prefix
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.packing import Suffixes, pack_calls
from sphere_pl.model.prefix_tree import batch_trees, prefix_trees
from sphere_pl.process.failures import out_of_memory

log = logging.getLogger(__name__)


def settle_cache(lm: LanguageModel, ids: Tensor, states: list[Tensor]) -> None:
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
    except MISFITS as error:  # of a cache that the model does not know
        if out_of_memory(error):
            raise
        lm.cached = False
    if not lm.cached:
        log.warning(
            "The model (%s) does not take up what it has cached: it reads each text from its beginning for every token "
            "that it writes, which is slower and changes no result.",
            lm.model.config.model_type,
        )


def _check_prefix(lm: LanguageModel, ids: Tensor, states: list[Tensor]) -> None:
    """Tokens after cached keys and values have the states that they have in the whole prompt."""
    cut = ids.shape[1] // 2
    positions = torch.arange(cut, ids.shape[1], device=ids.device)[None]
    try:
        prefix = run_prefix(lm, ids[:, :cut], torch.ones_like(ids[:, :cut]))
        calls = prefix.calls(lm, ids[:, cut:], torch.ones_like(ids), positions)
        found = {
            layer: run_block(lm, states[layer][:, cut:].to(calls.devices[layer]), calls, layer)
            for layer in kinds_of_blocks(lm)
        }
    except MISFITS as error:
        if out_of_memory(error):
            raise
        refuse(lm, f"its blocks do not take keys and values from a cache ({error})", 1.0, "recurrent, as true")
    for layer, state in found.items():
        whole = states[layer + 1][:, cut:]
        if not alike(lm, state, whole, states[layer][:, cut:]):
            refuse(lm, f"block {layer} forgets what is cached", apart_by(state, whole), "recurrent, as true")


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
    return alike(lm, torch.cat(found, dim=1)[:1], last[:, cut - 1 :], torch.zeros_like(last[:, cut - 1 :]))


def settle_masks(lm: LanguageModel, ids: Tensor, states: list[Tensor]) -> None:
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
            lm.own_masks |= not alike(lm, hidden[:, path], states[layer + 1], states[layer])
    except MISFITS as error:  # of blocks that make a mask of their own out of what they are given
        if out_of_memory(error):
            raise
        lm.own_masks = True


def settle_attention(lm: LanguageModel, ids: Tensor, calls: BlockCalls, states: list[Tensor]) -> None:
    """Let a model attend by itself for gradients as well if its blocks leave other states by `gradient_attention`."""
    cut = ids.shape[1] // 2
    ways = [(calls, states)]
    try:
        if packs(lm):
            ways.append((_packed_twice(lm, ids, cut), [state[:, cut:].repeat(1, 2, 1) for state in states]))
        with gradient_attention(lm):
            lm.own_attention = not all(
                alike(
                    lm,
                    run_block(lm, passed[layer].to(how.devices[layer]), how, layer),
                    passed[layer + 1],
                    passed[layer],
                )
                for how, passed in ways
                for layer in kinds_of_blocks(lm)
            )
    except MISFITS as error:  # of blocks that look into the mask, which may be no tensor then
        if out_of_memory(error):
            raise
        lm.own_attention = True


def _packed_twice(lm: LanguageModel, ids: Tensor, cut: int) -> BlockCalls:
    """How the blocks are called for the columns from `cut` on, after the others, packed beside themselves."""
    prefix = run_prefix(lm, ids[:, :cut], torch.ones_like(ids[:, :cut]))
    positions = torch.arange(cut, ids.shape[1], device=ids.device)[None]
    rows = Suffixes(ids[:, cut:], positions, prefix, prefix.calls(lm, ids[:, cut:], torch.ones_like(ids), positions))
    return pack_calls(lm, [rows, rows])
