"""How a run's metrics move with the energy: Spearman's coefficients, as it recorded them or as its curves say."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from sphere_pl.evaluation.metrics.table import FIRST_RANK
from sphere_pl.report.reading import RunData, Series, number


class RankCorrelation(NamedTuple):
    """A Spearman coefficient with its test: `p`, interval `low` to `high`, points `n`; NaN where not known."""

    rho: float
    p: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0


class Correlation(NamedTuple):
    """How a metric moves with the energy: its levels (paper, Fig. 2) and its consecutive differences (Fig. 3)."""

    levels: RankCorrelation
    differences: RankCorrelation


def correlations(run: RunData) -> dict[str, Correlation]:
    """Spearman correlation of the energy with each metric: the run's own, or computed from what it logged so far.

    Returns:
        By metric; empty if the energy was not measured or there are fewer than four validations.
    """
    recorded = run.results.get("spearman") or {}
    if recorded:
        found = {
            name.removeprefix("val/"): Correlation(_recorded(each.get("levels")), _recorded(each.get("differences")))
            for name, each in recorded.items()
        }
        return {name: each for name, each in found.items() if math.isfinite(each.levels.rho) or each.levels.n >= 4}
    pairs = {metric: paired(run.series("energy/mean"), run.series(f"val/{metric}")) for metric in FIRST_RANK}
    return {metric: _correlate(x, y) for metric, (_, x, y) in pairs.items() if len(x) >= 4}


def paired(x: Series, y: Series) -> tuple[list[float], list[float], list[float]]:
    """Values of two columns where both are finite.

    Returns:
        Edits, values of `x` and values of `y`, equally long.

    Example:
        >>> paired(Series((1.0, 2.0, 3.0), (5.0, 6.0, 7.0)), Series((2.0, 3.0), (0.5, float("nan"))))
        ([2.0], [6.0], [0.5])
    """
    of_x = dict(zip(*x, strict=True))
    rows = [
        (edits, of_x[edits], value)
        for edits, value in zip(*y, strict=True)
        if math.isfinite(of_x.get(edits, math.nan)) and math.isfinite(value)
    ]
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


def _recorded(found: dict[str, Any] | None) -> RankCorrelation:
    found = found or {}
    p = found.get("p", found.get("p_value"))
    low, high = number(found.get("low")), number(found.get("high"))
    return RankCorrelation(number(found.get("rho")), number(p), low, high, int(found.get("n") or 0))


def _correlate(x: Iterable[float], y: Iterable[float]) -> Correlation:
    import torch

    from sphere_callbacks.functional.statistics import spearman_test

    energy, metric = (torch.tensor(list(values), dtype=torch.float64) for values in (x, y))
    return Correlation(
        RankCorrelation(*spearman_test(energy, metric)), RankCorrelation(*spearman_test(energy.diff(), metric.diff()))
    )
