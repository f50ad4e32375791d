"""Scores of a task from predicted and right labels, each with its standard error.

Both labels are int64 of shape `[items]`, and a statistic of them is a scalar. Labels count from 0; a prediction of -1
is an answer that could not be read.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_matthews_corrcoef

Statistic = Callable[[Tensor, Tensor], Tensor]


class Estimate(NamedTuple):
    """A score and its standard error (NaN for fewer than two items)."""

    value: float
    standard_error: float


def accuracy(predicted: Tensor, label: Tensor) -> Tensor:
    """Share of items answered rightly, of all items; an answer that could not be read is wrong.

    Example:
        >>> accuracy(torch.tensor([0, 1, -1, 1]), torch.tensor([0, 1, 1, 0]))
        tensor(0.5000, dtype=torch.float64)
    """
    return (predicted == label).double().mean()


def accuracy_of_valid(predicted: Tensor, label: Tensor) -> Tensor:
    """Share of items answered rightly, of those whose answer could be read; 0 if none could.

    The authors' score of RTE and BoolQ. A model that has collapsed and answers few items can look good by it.

    Example:
        >>> accuracy_of_valid(torch.tensor([0, 1, -1, 1]), torch.tensor([0, 1, 1, 0]))
        tensor(0.6667, dtype=torch.float64)
    """
    valid = predicted >= 0
    return (predicted == label).double().sum() / valid.double().sum().clamp_min(1)


def valid_share(predicted: Tensor, label: Tensor) -> Tensor:
    """Share of items whose answer could be read."""
    return (predicted >= 0).double().mean()


def weighted_f1(predicted: Tensor, label: Tensor) -> Tensor:
    """F1 of each label, weighted by how often the label is right."""
    classes, predicted = _classes(predicted, label)
    return multiclass_f1_score(predicted, label, num_classes=classes, average="weighted")


def matthews(predicted: Tensor, label: Tensor) -> Tensor:
    """Matthews' correlation coefficient; 0 for a model that always answers alike, and by chance.

    An answer that could not be read counts as a label of its own, which is never right.
    """
    classes, predicted = _classes(predicted, label)
    return multiclass_matthews_corrcoef(predicted, label, num_classes=classes)


def _classes(predicted: Tensor, label: Tensor) -> tuple[int, Tensor]:
    """How many classes there are, and the predictions with unreadable answers as the last class."""
    unread = max(int(predicted.max()), int(label.max()), 1) + 1
    return unread + 1, torch.where(predicted < 0, unread, predicted)


METRICS: dict[str, Statistic] = {
    "accuracy": accuracy,
    "exact_match": accuracy,
    "accuracy_of_valid": accuracy_of_valid,
    "valid_share": valid_share,
    "weighted_f1": weighted_f1,
    "matthews": matthews,
}


def estimate(statistic: Statistic, predicted: Tensor, label: Tensor) -> Estimate:
    """A score and its jackknife standard error over items.

    The jackknife leaves out one item at a time. For a share it gives the usual `s / sqrt(n)`; it also holds for F1 and
    for correlations. Items with the same prediction and label change the score alike, so that a handful of
    evaluations serve any number of items (Efron 1982, The Jackknife, the Bootstrap and Other Resampling Plans).

    Args:
        statistic: From predicted and right labels to a score.
        predicted: Integers `[n]`, -1 for an answer that could not be read.
        label: Integers `[n]`.

    Example:
        >>> value, error = estimate(accuracy, torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 1, 0]))
        >>> round(value, 4), round(error, 4)
        (0.75, 0.25)
    """
    n = len(label)
    value = float(statistic(predicted, label))
    if n < 2:
        return Estimate(value, float("nan"))
    _, kind, counts = torch.unique(torch.stack([predicted, label]), dim=1, return_inverse=True, return_counts=True)
    without = []
    for each in range(len(counts)):
        kept = torch.arange(n, device=kind.device) != (kind == each).nonzero()[0]
        without.append(float(statistic(predicted[kept], label[kept])))
    weights, values = counts.double(), torch.tensor(without, dtype=torch.float64, device=kind.device)
    mean = (weights * values).sum() / n
    variance = (n - 1) / n * (weights * (values - mean) ** 2).sum()
    return Estimate(value, float(variance.sqrt()))
