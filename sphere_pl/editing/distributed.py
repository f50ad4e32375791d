"""Several processes edit one model: each finds its share of a batch's targets and keys, all solve the same update."""

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Gather = Callable[[Tensor], Tensor]


def share_of(items: Sequence[Item], rank: int, processes: int) -> Sequence[Item]:
    """The part of a batch that one process works on.

    Shares are contiguous and differ by one item at most. With fewer items than processes, the last ones repeat an
    item: nobody may stay away from the gathering.

    Example:
        >>> [share_of("abcde", rank, 2) for rank in (0, 1)]
        ['abc', 'de']
        >>> share_of("a", 1, 2)
        'a'
    """
    first, last = _bounds(len(items), rank, processes)
    return items[first:last] if last > first else items[:1]


def _bounds(n: int, rank: int, processes: int) -> tuple[int, int]:
    size, more = divmod(n, processes)
    first = rank * size + min(rank, more)
    return first, first + size + (rank < more)


def exchange(part: Tensor) -> Tensor:
    """Stack a tensor of one shape from every process, `[processes, ...]`."""
    parts = [torch.empty_like(part) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, part)
    return torch.stack(parts)


def gather_shares(
    part: Tensor, n: int, processes: int, gather: Gather = exchange, rows: Sequence[int] | None = None
) -> Tensor:
    """Put the shares of all processes together.

    Args:
        part: What this process found for its share, `[rows of its items, ...]`.
        n: How many items there are.
        processes: How many processes.
        gather: How the processes exchange their parts; see `exchange`.
        rows: How many rows each item has; one if None.

    Returns:
        All rows, in the order of the items, the same on every process.
    """
    if processes == 1:
        return part
    of_item = [1] * n if rows is None else rows
    sizes = [sum(of_item[slice(*_bounds(n, rank, processes))]) for rank in range(processes)]
    padded = part.new_zeros(max(sizes), *part.shape[1:])
    padded[: len(part)] = part
    gathered = gather(padded)  # [processes, longest, ...]
    return torch.cat([found[:size] for found, size in zip(gathered, sizes, strict=True)])


class Shares(NamedTuple):
    """How the processes of a run share the work on a batch.

    Attributes:
        rank: The number of this process.
        processes: How many there are.
    """

    rank: int = 0
    processes: int = 1

    def mine(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's share; see `share_of`."""
        return share_of(items, self.rank, self.processes)

    def together(self, part: Tensor, rows: Sequence[int]) -> Tensor:
        """The rows of all items from every process's share, `rows[i]` of item `i`; see `gather_shares`."""
        return gather_shares(part, len(rows), self.processes, rows=rows)


def is_first_process() -> bool:
    """Whether this is the first process on the first machine of a run, known before there is a trainer.

    Lightning, torchrun and SLURM say so in the environment; a process that nothing is said to is alone.
    """
    ranks = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK", "GROUP_RANK")
    return all(int(os.environ.get(name) or 0) == 0 for name in ranks)


def follow_parent(every: float = 2.0) -> None:
    """End this process soon after the one that started it is gone, also in the middle of a computation."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        sys.stderr.write("error: The first process of the run is gone, so this one ends too.\n")
        sys.stderr.flush()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="follow-parent").start()
