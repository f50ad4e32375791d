"""How a batch is put to the model: in which phrasings each request is asked, and which requests share a shift.

A phrasing is a request with a prompt and a form of its own: another wording, or the same in a chat template. All
phrasings of a request have one key, the mean, and one target. Requests whose keys are nearly equal cannot have
different values there, so they share one shift, which is optimised for the sum of their losses (MEMIT-Merge, arXiv
2502.07322); in the solve each has a row of its own, all with the same key and residual.

Shapes: `P` phrasings, `N` requests, `G` shifts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sphere_pl.data.request import EditBatch, EditRequest
from sphere_pl.editing.distributed import Shares


class Joint(NamedTuple):
    """What belongs together.

    Attributes:
        request: The request of each phrasing, `[P]`.
        shift: The shift of each request, `[N]`.
    """

    request: Tensor
    shift: Tensor

    @classmethod
    def separate(cls, n: int) -> "Joint":
        """Every request asked once, and with a shift of its own."""
        return cls(torch.arange(n), torch.arange(n))

    @property
    def shift_of_phrasing(self) -> Tensor:
        """The shift of each phrasing, `[P]`."""
        return self.shift[self.request]

    @property
    def phrasings_of_each_shift(self) -> Tensor:
        """How many phrasings each shift serves, `[G]`."""
        return torch.bincount(self.shift_of_phrasing)

    @property
    def weights(self) -> list[float]:
        """Weight of each phrasing in its request's loss, `P`: one over their number."""
        return (1 / torch.bincount(self.request)[self.request].double()).tolist()

    def first_of_each_shift(self, requests: Sequence[EditRequest]) -> list[EditRequest]:
        """One of the `P` phrasings for each shift, `G`."""
        first = {shift: number for number, shift in reversed(list(enumerate(self.shift_of_phrasing.tolist())))}
        return [requests[first[shift]] for shift in sorted(first)]

    def per_request(self, rows: Tensor) -> Tensor:
        """Mean of `rows` `[P, ...]` over the phrasings of each request, `[N, ...]`."""
        return group_means(rows, self.request, len(self.shift))

    def per_shift(self, rows: Tensor) -> Tensor:
        """Mean of `rows` `[N, ...]` over the requests that share a shift, `[G, ...]`."""
        return group_means(rows, self.shift, int(self.shift[-1]) + 1)

    def shared(self, rows: Tensor) -> Tensor:
        """`rows` `[N, ...]`, those of requests that share a shift replaced by their mean."""
        means = self.per_shift(rows)
        return means if len(means) == len(rows) else means[self.shift.to(rows.device)]

    def worst(self, losses: Tensor) -> Tensor:
        """The largest of some losses `[P]` among the phrasings of each shift, `[G]`."""
        if int(self.shift[-1]) + 1 == len(losses):
            return losses
        start = losses.new_full([int(self.shift[-1]) + 1], -torch.inf)
        return start.scatter_reduce(0, self.shift_of_phrasing.to(losses.device), losses, "amax")


def group_means(rows: Tensor, group: Tensor, n: int) -> Tensor:
    """Mean over the rows of each of `n` groups; the rows themselves, to the bit, where each is a group of its own.

    Example:
        >>> group_means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]), 2)
        tensor([2., 5.])
    """
    if len(rows) == n:
        return rows
    group = group.to(rows.device)
    count = torch.bincount(group, minlength=n).view(-1, *[1] * (rows.dim() - 1))
    return rows.new_zeros(n, *rows.shape[1:]).index_add_(0, group, rows) / count


class Asked(NamedTuple):
    """The requests of a batch as they are put to the model.

    Attributes:
        phrasings: Those of each request, `N` tuples, in the order of the shifts.
        shift: The shift of each request, `N` numbers that never fall.
        place: Where among the `N` each request of the batch is; others are earlier ones that a shift serves as well.
        replaced: How many earlier requests of nearly its key each request of the batch has besides, which are not asked
            again; none if empty.
    """

    phrasings: tuple[tuple[EditRequest, ...], ...]
    shift: tuple[int, ...]
    place: tuple[int, ...]
    replaced: tuple[int, ...] = ()

    @property
    def every_phrasing(self) -> list[EditRequest]:
        """All `P`."""
        return [each for phrasings in self.phrasings for each in phrasings]

    @property
    def of_the_batch(self) -> list[EditRequest]:
        """The phrasings of the batch's own requests."""
        return [each for place in self.place for each in self.phrasings[place]]

    @property
    def joint(self) -> Joint:
        """What belongs together."""
        request = [number for number, phrasings in enumerate(self.phrasings) for _ in phrasings]
        return Joint(torch.tensor(request), torch.tensor(self.shift))

    def share(self, shares: Shares) -> "Asked":
        """What one process works on: whole shifts."""
        mine = set(shares.mine(range(self.shift[-1] + 1)))
        chosen = [number for number, shift in enumerate(self.shift) if shift in mine]
        first = self.shift[chosen[0]]
        return Asked(
            tuple(self.phrasings[number] for number in chosen),
            tuple(self.shift[number] - first for number in chosen),
            tuple(range(len(chosen))),
        )

    def together(self, part: Tensor, shares: Shares) -> Tensor:
        """Rows of all `N` requests from every process's share `[n, ...]`."""
        return shares.together(part, torch.bincount(torch.tensor(self.shift)).tolist())

    def of_batch(self, rows: Tensor) -> Tensor:
        """Those of the batch's requests, `[n, ...]` in its order, among rows of all `N`, `[N, ...]`."""
        every = self.place == tuple(range(len(self.shift)))
        return rows if every else rows[list(self.place)]

    def taken(self, rows: Tensor) -> tuple[Tensor, Tensor] | None:
        """What `LayerProblem.taken` says, from the keys of all `N`, `[N, d_in]`."""
        again = [number for number in range(len(self.shift)) if number not in set(self.place)]
        replaced = self.replaced or (0,) * len(self.place)
        if not again and not any(replaced):
            return None
        # Those that are asked no more have nearly the key of the request itself.
        owner = [request for request, count in enumerate(replaced) for _ in range(count)]
        keys = rows[again + [self.place[request] for request in owner]]
        shared = [[self.shift[number] == self.shift[own] for number in again] for own in self.place]
        alone = [[request == each for each in owner] for request in range(len(self.place))]
        return keys, torch.tensor([one + other for one, other in zip(shared, alone, strict=True)])


def ask_once(batch: EditBatch) -> Asked:
    """Every request in its own words alone, and with a shift of its own."""
    every = tuple(range(len(batch.requests)))
    return Asked(tuple((request,) for request in batch.requests), every, every)


def ask_together(phrasings: Sequence[tuple[EditRequest, ...]], groups: Sequence[Sequence[int]], n: int) -> Asked:
    """Requests in groups that share a shift.

    Args:
        phrasings: Those of `N` requests, the `n` of the batch first.
        groups: Which requests share a shift; each request is in one of them.
        n: How many requests the batch has.
    """
    order = [number for group in groups for number in group]
    shift = [place for place, group in enumerate(groups) for _ in group]
    where = {number: place for place, number in enumerate(order)}
    return Asked(
        tuple(phrasings[number] for number in order), tuple(shift), tuple(where[number] for number in range(n))
    )
