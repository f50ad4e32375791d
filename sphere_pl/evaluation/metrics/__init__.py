"""torchmetrics of knowledge editing, each usable alone, and the table of what is said of them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphere_pl.evaluation.metrics.accuracy import (
        Efficacy,
        Generalization,
        NeighborhoodAgreement,
        Portability,
        RecordAccuracy,
        Specificity,
    )
    from sphere_pl.evaluation.metrics.probability import ProbabilityMagnitude, ProbabilitySuccess
    from sphere_pl.evaluation.metrics.records import RecordMean
    from sphere_pl.evaluation.metrics.texts import AnswerMatch, Consistency, Fluency

__all__ = [
    "AnswerMatch",
    "Consistency",
    "Efficacy",
    "Fluency",
    "Generalization",
    "NeighborhoodAgreement",
    "Portability",
    "ProbabilityMagnitude",
    "ProbabilitySuccess",
    "RecordAccuracy",
    "RecordMean",
    "Specificity",
]

_HOMES = {
    **dict.fromkeys(
        ("Efficacy", "Generalization", "NeighborhoodAgreement", "Portability", "RecordAccuracy", "Specificity"),
        "accuracy",
    ),
    **dict.fromkeys(("ProbabilityMagnitude", "ProbabilitySuccess"), "probability"),
    **dict.fromkeys(("AnswerMatch", "Consistency", "Fluency"), "texts"),
    "RecordMean": "records",
}


def __getattr__(name: str) -> Any:
    """Import a metric when it is first asked for: reports read the table without torchmetrics."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}. It offers {', '.join(__all__)}.")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
