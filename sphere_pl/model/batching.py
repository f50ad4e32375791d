"""How much goes through a model at once: rows of tokens of all lengths, padded and grouped."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MOST_TOKENS = 4096  # in one forward pass, if nothing else is said
LOGITS_AT_ONCE = 3 * 2**21  # numbers, 24 MiB: larger blocks of memory are new to the process each time


def pad(rows: Sequence[Sequence[int]], pad_id: int, device: "torch.device") -> "tuple[Tensor, Tensor]":
    """Pad rows on the right.

    Returns:
        Tokens and attention mask (1 for real tokens), both of shape `[rows, longest]`.

    Example:
        >>> import torch
        >>> pad([[5, 6], [7]], 0, torch.device("cpu"))[1]
        tensor([[1, 1],
                [1, 0]])
    """
    import torch  # here, since `check` tokenises without it

    width = max((len(row) for row in rows), default=0)
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids.reshape(len(rows), width).long(), mask.reshape(len(rows), width).long()


def micro_batches(lengths: Sequence[int], max_tokens: int, overhead: int = 16) -> list[list[int]]:
    """Group rows by length so that padding and the number of groups cost as little as possible.

    Args:
        lengths: Tokens of each row.
        max_tokens: No group exceeds this many tokens after padding; a longer row stands alone.
        overhead: What starting another group costs, in tokens of work.

    Returns:
        Indices into `lengths`, each once, rows sorted by length.

    Example:
        >>> micro_batches([3, 90, 3, 4], max_tokens=1000)
        [[0, 2, 3], [1]]
    """
    groups = []
    for rows in _buckets(lengths, overhead):
        size = max(1, max_tokens // max(1, lengths[rows[-1]]))
        groups += [rows[start : start + size] for start in range(0, len(rows), size)]
    return groups


def _buckets(lengths: Sequence[int], overhead: int) -> list[list[int]]:
    """Split the rows, sorted by length, where padding would cost more than another group."""
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(length, []).append(index)
    steps = sorted(by_length)
    # best[i]: cheapest way to group the i shortest lengths, and where its last group begins.
    best: list[tuple[int, int]] = [(0, 0)]
    for stop, longest in enumerate(steps, start=1):
        rows, options = 0, []
        for start in range(stop - 1, -1, -1):
            rows += len(by_length[steps[start]])
            options.append((best[start][0] + rows * longest + overhead, start))
        best.append(min(options))
    groups, stop = [], len(steps)
    while stop:
        start = best[stop][1]
        groups.append([index for length in steps[start:stop] for index in by_length[length]])
        stop = start
    return groups[::-1]
