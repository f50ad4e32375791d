"""Keys and values of the columns that rows begin with, each different beginning computed once.

The rows of a batch begin with the same few context templates, and many with the same words of a prompt: laid out as
prefix trees they are a fraction of the columns.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from sphere_pl.model.batching import micro_batches, pad
from sphere_pl.model.frozen_prefix import FrozenPrefix, run_prefix
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.prefix_tree import PrefixTree, batch_trees, prefix_trees

_WIDTH = 256  # tokens in a row: those of a batch of ten are mostly one


class Beginnings:
    """The columns before the subject of every row of a batch.

    A model that takes no masks of others runs each row's own when it is asked for. These are padded in front: what
    follows stands directly after them, as far from each token as a window of the attention takes it to be.

    Args:
        lm: The language model.
        rows: Tokens of each row's beginning; a row may have none.
        max_tokens: Tokens in one forward pass.
        after: Most tokens that follow a beginning.
    """

    def __init__(self, lm: LanguageModel, rows: Sequence[Sequence[int]], max_tokens: int, after: int = 0) -> None:
        self.lm, self.rows = lm, rows
        longest = max(map(len, rows), default=0)
        self._shared = bool(longest) and lm.takes_masks(longest + after)
        self._keys: list[Tensor] = []  # of each block, [tokens, heads, size]
        self._values: list[Tensor] = []
        self._places: dict[int, list[int]] = {}
        if self._shared:
            numbers = [number for number, row in enumerate(rows) if row]
            # Where passes have room for one row only, rows are to be run alone, and share nothing.
            trees = prefix_trees([rows[number] for number in numbers], min(_WIDTH, max_tokens))
            self._run(trees, numbers, max_tokens)

    @torch.no_grad()
    def _run(self, trees: Sequence[PrefixTree], numbers: Sequence[int], max_tokens: int) -> None:
        """Run the trees of the rows with these numbers through all blocks and keep what they leave."""
        passes: list[list[DynamicLayer]] = []
        start = 0
        for chosen in micro_batches([len(tree.ids) for tree in trees], max_tokens):
            some = [trees[number] for number in chosen]
            cache = DynamicCache()
            calls = self.lm.block_calls(*batch_trees(some, self.lm.pad_id, self.lm.dtype, self.lm.device), cache)
            self.lm.run(calls.hidden, calls, 0, self.lm.n_layers)
            passes.append(cast(list[DynamicLayer], cache.layers))
            rows, columns = calls.hidden.shape[:2]
            for row, tree in enumerate(some):
                first = start + row * columns
                self._places |= {numbers[n]: [first + place for place in path] for n, path in tree.paths.items()}
            start += rows * columns
        for layers in zip(*passes, strict=True):
            self._keys.append(torch.cat([cast(Tensor, each.keys).transpose(1, 2).flatten(0, 1) for each in layers]))
            self._values.append(torch.cat([cast(Tensor, each.values).transpose(1, 2).flatten(0, 1) for each in layers]))

    def of(self, rows: Sequence[int]) -> tuple[FrozenPrefix, Tensor]:
        """The beginnings of some rows, padded to the longest, and 1 for their real columns.

        Args:
            rows: Their numbers.
        """
        if not self._shared:
            backwards = pad([self.rows[row][::-1] for row in rows], self.lm.pad_id, self.lm.device)
            ids, mask = (each.flip(1) for each in backwards)
            return run_prefix(self.lm, ids, mask), mask
        ids, mask = pad([self.rows[row] for row in rows], self.lm.pad_id, self.lm.device)
        if ids.shape[1] == 0:
            return run_prefix(self.lm, ids, mask), mask
        places, _ = pad(
            [self._places.get(row, []) for row in rows], 0, self.lm.device
        )  # what stands in padding is masked
        return FrozenPrefix(_rows(self._keys, places), _rows(self._values, places)), mask


def _rows(kept: Sequence[Tensor], places: Tensor) -> list[Tensor]:
    """What is kept of each block `[tokens, heads, size]` at places `[rows, columns]`, as `FrozenPrefix` has it."""
    return [each[places.to(each.device)].transpose(1, 2).contiguous() for each in kept]
