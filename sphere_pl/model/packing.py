"""Groups of rows as one packed row: how the model would call its blocks for it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sphere_pl.model.attention import Packed, Packing, added
from sphere_pl.model.block_calls import BlockCalls
from sphere_pl.model.frozen_prefix import FrozenPrefix
from sphere_pl.model.language_model import LanguageModel


class Suffixes(NamedTuple):
    """Rows of one length, each after its own prefix.

    Attributes:
        ids: Tokens, `[rows, columns]`.
        positions: Position of each, `[rows, columns]`.
        prefix: Keys and values of the columns before.
        calls: How the blocks are called for these rows alone; their masks are used.
    """

    ids: Tensor
    positions: Tensor
    prefix: FrozenPrefix
    calls: BlockCalls


def pack_calls(lm: LanguageModel, groups: Sequence[Suffixes]) -> BlockCalls:
    """How the blocks are called for all rows of all groups as one row.

    The model is asked with a stand-in for the mask, which it hands on as it is; in its place stands, for each block, a
    `Packing` with the masks that the model made for each group. Run the blocks under `gradient_attention`.
    """
    ids = torch.cat([group.ids.flatten() for group in groups])[None]
    positions = torch.cat([group.positions.flatten() for group in groups])[None]
    stand_in = torch.zeros(1, 1, 1, 1, device=ids.device).expand(1, 1, ids.shape[1], ids.shape[1])
    calls = lm.block_calls(ids, stand_in, positions)
    layers = range(lm.n_layers)
    masks = [_Masks(group, calls, stand_in) for group in groups]
    packings = [
        Packing(tuple(_packed(group, layer, each.of(layer)) for group, each in zip(groups, masks, strict=True)))
        for layer in layers
    ]
    args = [tuple(packings[layer] if value is stand_in else value for value in calls.args[layer]) for layer in layers]
    kwargs = [
        {name: packings[layer] if value is stand_in else value for name, value in calls.kwargs[layer].items()}
        for layer in layers
    ]
    return calls._replace(args=args, kwargs=kwargs)


def _packed(group: Suffixes, layer: int, mask: Tensor) -> Packed:
    rows, columns = group.ids.shape
    keys, values = (part[layer] if part else None for part in (group.prefix.keys, group.prefix.values))
    return Packed(rows, columns, keys, values, mask)


class _Masks:
    """What the model's masks add to the scores of a group; blocks of one kind share a mask.

    Args:
        group: The group.
        calls: Those of the packed row, which hand on the stand-in.
        stand_in: For the mask.
    """

    def __init__(self, group: Suffixes, calls: BlockCalls, stand_in: Tensor) -> None:
        self._group, self._calls, self._stand_in = group, calls, stand_in
        self._known: list[tuple[Any, Tensor]] = []

    def of(self, layer: int) -> Tensor:
        """That of a block, as `added` says."""
        handed = _handed(self._group.calls, layer, self._calls, self._stand_in)
        for mask, known in self._known:
            if mask is handed:
                return known
        columns = self._group.ids.shape[1]
        cached = self._group.prefix.keys[layer].shape[2] if self._group.prefix.keys else 0
        self._known.append((handed, added(handed, columns, cached + columns, self._group.ids.device)))
        return self._known[-1][1]


def _handed(own: BlockCalls, layer: int, calls: BlockCalls, stand_in: Tensor) -> Any:
    named = [name for name, value in calls.kwargs[layer].items() if value is stand_in]
    placed = [place for place, value in enumerate(calls.args[layer]) if value is stand_in]
    return own.kwargs[layer][named[0]] if named else own.args[layer][placed[0]]
