"""Two methods on the same facts, or orders of them: what these differ by is no difference of methods."""

import math
from collections.abc import Sequence
from itertools import product
from statistics import mean, stdev
from typing import NamedTuple

from scipy.stats import binomtest

from study.outcomes import HIT, UNASKED
from study.runs import Estimate


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


class Exchanged(NamedTuple):
    """Two runs on the same facts, fact by fact.

    Attributes:
        facts: How many both were asked.
        gained: Facts that hold in the second run alone.
        lost: Facts that hold in the first run alone.
    """

    facts: int
    gained: int
    lost: int

    @property
    def difference(self) -> Estimate:
        """Share of the facts that hold, the second's minus the first's; its error is that of paired answers."""
        value, either = (self.gained - self.lost) / self.facts, (self.gained + self.lost) / self.facts
        return Estimate(value, math.sqrt(max(0.0, either - value**2) / self.facts))

    @property
    def p_value(self) -> float:
        """McNemar's exact test: were gains and losses as likely as each other, how often would they differ as much."""
        either = self.gained + self.lost
        return float(binomtest(self.gained, either).pvalue) if either else 1.0


def share(signs: str) -> Estimate:
    """Share of the facts that were asked and hold, with its standard error; NaN where none was asked.

    Example:
        >>> share("++-  ").value.__round__(3)
        0.667
    """
    asked = len(signs) - signs.count(UNASKED)
    if not asked:
        return Estimate(math.nan, math.nan)
    p = signs.count(HIT) / asked
    return Estimate(p, math.sqrt(p * (1 - p) / asked))


def exchanged(first: str, second: str) -> Exchanged:
    """Compare two runs fact by fact.

    Args:
        first: A sign for each fact, in the order of the stream.
        second: The same of the other run, on the same facts.

    Raises:
        ValueError: If they were not asked the same facts.

    Example:
        >>> exchanged("++-- ", "+-++ ")
        Exchanged(facts=4, gained=2, lost=1)
    """
    if [each == UNASKED for each in first] != [each == UNASKED for each in second]:
        raise ValueError(f"Both must be asked the same facts, found {len(first)} and {len(second)} of them.")
    pairs = [(a == HIT, b == HIT) for a, b in zip(first, second, strict=True) if a != UNASKED]
    return Exchanged(len(pairs), pairs.count((False, True)), pairs.count((True, False)))
