"""Which records are looked at where not all are: always the same ones."""

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch.utils.data import IterableDataset

from sphere_pl.data.request import EditRequest

AGES = ("earliest", "middle", "latest")


class ScoringBatch(NamedTuple):
    """Requests that are scored together.

    Attributes:
        requests: The requests.
        places: Place of each in the stream.
    """

    requests: tuple[EditRequest, ...]
    places: tuple[int, ...]


def fixed_sample(total: int, size: int, seed: int) -> list[int]:
    """Choose `size` of the first `total` places in the stream, ascending.

    Every place has a rank of its own and the lowest ranks are chosen, so that a sample of more edits keeps what it can
    of a sample of fewer, and a smaller sample is part of a larger one.

    Example:
        >>> fixed_sample(10, 4, seed=0)
        [2, 3, 5, 7]
        >>> fixed_sample(3, 4, seed=0)
        [0, 1, 2]
    """
    ranks = random.Random(seed)  # noqa: S311 (a sample, not a secret)
    order = sorted((ranks.random(), place) for place in range(total))
    return sorted(place for _, place in order[:size])


def age_of(place: int, edits: int) -> str:
    """In which third of the edits so far a place lies.

    Example:
        >>> [age_of(place, 6) for place in range(6)]
        ['earliest', 'earliest', 'middle', 'middle', 'latest', 'latest']
    """
    return AGES[3 * place // edits]


class ScoredEdits(IterableDataset[ScoringBatch]):
    """Edited requests in scoring batches.

    Iterable, so that Lightning asks for them each time: a map-style data set would keep its first length.

    Args:
        begin: Begins a validation and gives its batches.
    """

    def __init__(self, begin: Callable[[], Iterator[ScoringBatch]]) -> None:
        self.begin = begin

    def __iter__(self) -> Iterator[ScoringBatch]:
        return self.begin()
