"""Columns that are run once and stand before any number of suffixes: their keys and values, which never grow."""

from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from sphere_pl.model.block_calls import BlockCalls
from sphere_pl.model.language_model import LanguageModel


class FrozenPrefix:
    """A key-value cache that can be attended to any number of times and never grows.

    Stands in for a Hugging Face cache inside the attention layers: `update` returns the cached columns followed by
    the new ones and forgets the new ones, so that the same suffix can be run again with other hidden states.

    Args:
        keys: Keys of each layer, shape `[rows, heads, cached columns, head_dim]`.
        values: Values of each layer, the same shape.
    """

    is_compileable = False

    def __init__(self, keys: list[Tensor], values: list[Tensor]) -> None:
        self.keys = keys
        self.values = values

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return the columns of `layer` before and including the new ones, `[rows, heads, all columns, head_dim]`."""
        return torch.cat([self.keys[layer], keys], dim=-2), torch.cat([self.values[layer], values], dim=-2)

    def get_seq_length(self, layer: int = 0) -> int:
        """How many columns are cached, which some attention layers ask for."""
        return int(self.keys[layer].shape[-2])

    def select(self, rows: Tensor) -> "FrozenPrefix":
        """Keep only some rows, by their numbers `[kept rows]`."""
        return FrozenPrefix(
            [k.index_select(0, rows.to(k.device)) for k in self.keys],
            [v.index_select(0, rows.to(v.device)) for v in self.values],
        )

    def expand(self, rows: int) -> "FrozenPrefix":
        """Let a prefix of one row stand before any number of rows, without a copy."""
        return FrozenPrefix(
            [k.expand(rows, -1, -1, -1) for k in self.keys], [v.expand(rows, -1, -1, -1) for v in self.values]
        )

    def calls(self, lm: LanguageModel, ids: Tensor, mask: Tensor, positions: Tensor) -> BlockCalls:
        """How the blocks are called for a suffix after this prefix.

        Args:
            lm: The language model.
            ids: Tokens of the suffix, shape `[rows, columns]`.
            mask: 1 for real tokens, shape `[rows, cached columns + columns]`.
            positions: Position of each token of the suffix, shape `[rows, columns]`.
        """
        if not self.keys:
            return lm.block_calls(ids, mask, positions)
        # The model only asks a cache for its length when it makes masks: one that holds a single zero a column will do.
        blank = ids.new_zeros(1, 1, self.keys[0].shape[-2], 1, dtype=torch.float32)
        stand_in = DynamicCache()
        for layer in range(lm.n_layers):
            stand_in.update(blank, blank, layer)
        return lm.block_calls(ids, mask, positions, stand_in).replace(stand_in, self)


def run_prefix(lm: LanguageModel, ids: Tensor, mask: Tensor) -> FrozenPrefix:
    """Run the columns that several suffixes will stand after, through all blocks.

    Args:
        lm: The language model.
        ids: Tokens, shape `[rows, columns]`; without columns the prefix is empty.
        mask: 1 for real tokens, shape `[rows, columns]`, padded on either side. A row may have none.
    """
    if ids.shape[1] == 0:
        return FrozenPrefix([], [])
    cache = DynamicCache()
    # A row without a real token would attend to nothing and turn into NaN: let it see its padding here. The suffix's
    # own mask hides that column again.
    visible = mask.clone()
    visible[mask.sum(1) == 0, 0] = 1
    positions = torch.arange(ids.shape[1], device=ids.device) - (mask.cumsum(1) == 0).sum(1, keepdim=True)
    calls = lm.block_calls(ids, visible, positions.clamp_min(0), cache)
    lm.run(calls.hidden, calls, 0, lm.n_layers)
    layers = cast(list[DynamicLayer], cache.layers)
    return FrozenPrefix(
        [cast(Tensor, entry.keys) for entry in layers], [cast(Tensor, entry.values) for entry in layers]
    )
