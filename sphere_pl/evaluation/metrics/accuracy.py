"""Teacher-forced top-1 accuracy, as the paper's Table 1 counts it.

A prompt counts as a hit if every token of its target is the likeliest one, given the target's tokens before it.
"""

from typing import Any

from torch import Tensor

from sphere_pl.evaluation.metrics.functional import exact_hits
from sphere_pl.evaluation.metrics.records import RecordMean


class RecordAccuracy(RecordMean):
    """Mean over records of the mean over prompts of "all target tokens predicted".

    Args:
        ignore_index: Marks target positions that do not count.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = RecordAccuracy()
        >>> metric.update(torch.tensor([[5], [6]]), torch.tensor([[5], [7]]), torch.tensor([0, 1]))
        >>> metric.compute()
        tensor(0.5000)
    """

    def __init__(self, ignore_index: int = -100, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ignore_index = ignore_index

    def update(self, predicted: Tensor, target: Tensor, record: Tensor) -> None:
        """Add the prompts of some records.

        Args:
            predicted: Likeliest tokens, shape `[rows, tokens]`.
            target: Tokens to be predicted, padded with `ignore_index`, the same shape.
            record: Which record each row belongs to, shape `[rows]`.
        """
        self.add(exact_hits(predicted, target, self.ignore_index), record)


class Efficacy(RecordAccuracy):
    """Share of edited prompts that the model completes with the new object."""


class Generalization(RecordAccuracy):
    """Share of paraphrases of edited prompts that the model completes with the new object."""


class Specificity(RecordAccuracy):
    """Share of neighbouring prompts, about other subjects, that the model still completes with the true answer."""


class NeighborhoodAgreement(RecordAccuracy):
    """Share of neighbouring prompts whose answer is the unedited model's.

    Right or wrong: an edit shall not change what it is not about. Specificity alone is low for a model that never
    knew the answers.
    """


class Portability(RecordAccuracy):
    """Share of questions whose answer follows from the edit that the model answers with the reference answer."""
