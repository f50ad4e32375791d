"""torchmetrics of knowledge editing, each usable alone."""

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
