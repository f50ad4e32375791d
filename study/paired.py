"""Two methods on the same orders of the same records: what orders differ by is no difference of methods."""

import math
from collections.abc import Sequence
from itertools import product
from statistics import mean, stdev
from typing import NamedTuple


class Paired(NamedTuple):
    """The difference of two methods over orders.

    Attributes:
        difference: Mean of the second's score minus the first's.
        error: Its standard error over orders; NaN for one order.
        p_value: Share of all ways to exchange the two within orders that differ at least as much, two-sided and exact.
            It cannot fall below `2 ** (1 - orders)`: three orders alone reject nothing at 5 %.
        orders: How many there are.
    """

    difference: float
    error: float
    p_value: float
    orders: int

    @property
    def clear(self) -> bool:
        """Whether the difference is beyond two standard errors."""
        return abs(self.difference) > 2 * self.error  # never with an error that is not known


def over_orders(scores: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error over orders; NaN for the error of one.

    Example:
        >>> over_orders([0.5, 0.7])[0]
        0.6
    """
    error = stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else math.nan
    return mean(scores), error


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Compare two methods order by order.

    Args:
        first: A score of one method in each order.
        second: The same of the other, in the same orders.

    Raises:
        ValueError: If there are none, or not as many of both.

    Example:
        >>> found = paired([0.5, 0.6, 0.4], [0.6, 0.7, 0.5])
        >>> round(found.difference, 3), found.p_value
        (0.1, 0.25)
    """
    if not first or len(first) != len(second):
        raise ValueError(f"Both need a score in each order, found {len(first)} and {len(second)}.")
    differences = [b - a for a, b in zip(first, second, strict=True)]
    difference, error = over_orders(differences)
    exchanged = [
        abs(mean(sign * each for sign, each in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    # Rounding must not part the arrangement at hand from its mirror image.
    extreme = sum(each >= abs(difference) * (1 - 1e-12) for each in exchanged)
    return Paired(difference, error, extreme / len(exchanged), len(differences))
