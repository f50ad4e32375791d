"""A score with its standard error, and the plain form that files hold it in."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from sphere_pl.evaluation.metrics.table import is_share
from sphere_pl.text import numbers

_ERROR = "_standard_error"  # in results.json, validation.json, checkpoints and comparison.csv


class Scored(NamedTuple):
    """A score.

    Attributes:
        value: The mean over records.
        error: Its standard error; NaN where there is none.
    """

    value: float
    error: float = math.nan


Scores: TypeAlias = dict[str, Scored]


def error_name(metric: str) -> str:
    """Under which name files hold the standard error of a metric.

    Example:
        >>> error_name("efficacy")
        'efficacy_standard_error'
    """
    return metric + _ERROR


def to_plain(scores: Mapping[str, Scored]) -> dict[str, float]:
    """Scores as files hold them: every number under a name of its own; errors that are not known are left out.

    Example:
        >>> to_plain({"efficacy": Scored(0.5, 0.1), "perplexity": Scored(24.0)})
        {'efficacy': 0.5, 'efficacy_standard_error': 0.1, 'perplexity': 24.0}
    """
    plain: dict[str, float] = {}
    for name, (value, error) in scores.items():
        plain |= {name: value} if math.isnan(error) else {name: value, error_name(name): error}
    return plain


def from_plain(values: Mapping[str, Any]) -> Scores:
    """Scores as read from a file; what is null or no number there is NaN.

    Example:
        >>> from_plain({"efficacy": 0.5, "efficacy_standard_error": 0.1, "perplexity": None})
        {'efficacy': Scored(value=0.5, error=0.1), 'perplexity': Scored(value=nan, error=nan)}
    """
    return {
        name: Scored(_number(value), _number(values.get(error_name(name))))
        for name, value in values.items()
        if not name.endswith(_ERROR)
    }


def shown(metric: str, score: Scored) -> str:
    """A score as the terminal shows it.

    Example:
        >>> shown("efficacy", Scored(0.987, 0.011)), shown("perplexity", Scored(24.31))
        ('0.987 ± 0.011', '24.3')
    """
    if is_share(metric):
        return numbers.score(score.value, score.error)
    spread = f" ± {numbers.plain(score.error)}" if math.isfinite(score.error) else ""
    return numbers.plain(score.value) + spread


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not math.isnan(value) else math.nan
