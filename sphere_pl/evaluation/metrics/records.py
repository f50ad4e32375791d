"""What all metrics of editing have in common: the mean over records of the mean over prompts."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from sphere_pl.evaluation.metrics.functional import record_means, standard_error


class RecordMean(Metric):
    """Mean over records of the mean over a record's prompts, so that records with many prompts weigh no more.

    State is sums and counts, so it reduces over processes; the rows of one record must come in one update. A subclass
    turns what it is given into one value a row and calls `add`.

    Args:
        **kwargs: Arguments of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("total", "squares", "count"):
            self.add_state(name, default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, values: Tensor, record: Tensor) -> None:
        """Add the rows of some records.

        Args:
            values: One value a row, shape `[rows]`.
            record: Which record each row belongs to, any integers, shape `[rows]`.
        """
        means = record_means(values.double(), record)
        self.total += means.sum()
        self.squares += (means**2).sum()
        self.count += len(means)

    def compute(self) -> Tensor:
        """The mean over records; NaN before the first record."""
        return (self.total / self.count).float()

    def standard_error(self) -> Tensor:
        """Standard error of the mean over records; NaN for fewer than two."""
        return standard_error(self.total, self.squares, self.count).float()
