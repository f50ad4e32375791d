"""Sequences that begin alike, laid out as trees so that every shared beginning is computed once.

The prompts of one relation, the two targets after one prompt, and a neighbour that several records ask for share
tokens. Under causal attention a token's state depends on the tokens before it and on nothing else, so one state serves
all sequences that pass through it. Each row of the model's input is a tree in depth-first order; a token attends to
its ancestors, and its position is its depth.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

WIDTH = 128  # tokens in a row: attention grows with it, the share of padding shrinks


class PrefixTree(NamedTuple):
    """One row of input.

    Attributes:
        ids: Tokens in depth-first order.
        positions: Depth of each.
        ends: Where the subtree of each ends: its descendants are the tokens up to there.
        paths: For each sequence in this row, by its number, the place of each of its tokens.
    """

    ids: list[int]
    positions: list[int]
    ends: list[int]
    paths: dict[int, list[int]]


def prefix_trees(sequences: Sequence[Sequence[int]], width: int = WIDTH) -> list[PrefixTree]:
    """Lay sequences out in rows of about `width` tokens; a longer sequence has a row to itself.

    Args:
        sequences: Tokens of each.
        width: At `width` 0 every sequence has its own row, and nothing is shared.

    Example:
        >>> (tree,) = prefix_trees([[5, 6, 7], [5, 6, 8]])
        >>> tree.ids, tree.positions, tree.ends
        ([5, 6, 7, 8], [0, 1, 2, 2], [4, 4, 3, 4])
        >>> tree.paths
        {0: [0, 1, 2], 1: [0, 1, 3]}
    """
    trees: list[PrefixTree] = []
    path: list[int] = []
    for number in sorted(range(len(sequences)), key=lambda index: list(sequences[index])):
        sequence = sequences[number]
        shared = _shared(trees[-1], path, sequence) if trees else 0
        if not trees or len(trees[-1].ids) + len(sequence) - shared > width:
            trees.append(PrefixTree([], [], [], {}))
            path, shared = [], 0
        path = _grow(trees[-1], path[:shared], sequence)
        trees[-1].paths[number] = path
    return trees


def _shared(tree: PrefixTree, path: list[int], sequence: Sequence[int]) -> int:
    """How many tokens a sequence has in common with the path grown last."""
    for depth, (place, token) in enumerate(zip(path, sequence, strict=False)):
        if tree.ids[place] != token:
            return depth
    return min(len(path), len(sequence))


def _grow(tree: PrefixTree, path: list[int], sequence: Sequence[int]) -> list[int]:
    """Add a sequence that shares `path`; every subtree on its way now reaches to the row's end."""
    first = len(tree.ids)
    stop = first + len(sequence) - len(path)
    tree.ids.extend(sequence[len(path) :])
    tree.positions.extend(range(len(path), len(sequence)))
    tree.ends.extend([stop] * (stop - first))
    for place in path:
        tree.ends[place] = stop
    return [*path, *range(first, stop)]


def batch_trees(
    trees: Sequence[PrefixTree], pad_id: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Put trees into one input for the model.

    Returns:
        Tokens `[rows, columns]`, the mask that is added to attention scores `[rows, 1, columns, columns]`, and
        positions `[rows, columns]`. Padding attends to itself alone: a row of nothing would be NaN.
    """
    width = max(len(tree.ids) for tree in trees)
    ids, positions, ends = [], [], []
    for tree in trees:
        rest = range(len(tree.ids), width)
        ids.append([*tree.ids, *(pad_id for _ in rest)])
        positions.append([*tree.positions, *(0 for _ in rest)])
        ends.append([*tree.ends, *(place + 1 for place in rest)])
    place = torch.arange(width, device=device)
    reach = torch.tensor(ends, device=device)[:, None, :]  # [rows, 1, columns]
    seen = (place[None, :] <= place[:, None]) & (place[:, None] < reach)  # a token sees itself and its ancestors
    mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)
    return torch.tensor(ids, device=device), mask[:, None], torch.tensor(positions, device=device)
