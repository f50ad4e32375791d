"""Two answers compared by their probability, as ROME does (Meng et al. 2022, Sec. 3.2).

A target of several tokens has the geometric mean of its tokens' probabilities, as in ROME's code: the exponential of
the mean log-probability. Joint probabilities would favour the shorter of the two answers.
"""

import torch
from torch import Tensor

from sphere_pl.evaluation.metrics.records import RecordMean


class ProbabilitySuccess(RecordMean):
    """Share of prompts whose wanted answer is likelier than the other one.

    ROME's efficacy and paraphrase scores (ES, PS) if the wanted answer is the new object and the other the true one,
    its neighbourhood score (NS) if it is the other way round. A tie is no success.

    Example:
        >>> metric = ProbabilitySuccess()
        >>> metric.update(torch.tensor([-1.0, -3.0]), torch.tensor([-2.0, -2.0]), torch.tensor([0, 1]))
        >>> metric.compute()
        tensor(0.5000)
    """

    def update(self, wanted: Tensor, other: Tensor, record: Tensor) -> None:
        """Add the prompts of some records.

        Args:
            wanted: Mean log-probability of the wanted answer's tokens, shape `[rows]`.
            other: The same of the other answer.
            record: Which record each row belongs to, shape `[rows]`.
        """
        self.add(wanted > other, record)


class ProbabilityMagnitude(RecordMean):
    """Mean of the wanted answer's probability minus the other one's: ROME's magnitudes (EM, PM, NM).

    Example:
        >>> metric = ProbabilityMagnitude()
        >>> metric.update(torch.tensor([0.5]).log(), torch.tensor([0.25]).log(), torch.tensor([0]))
        >>> metric.compute()
        tensor(0.2500)
    """

    def update(self, wanted: Tensor, other: Tensor, record: Tensor) -> None:
        """Add the prompts of some records; see `ProbabilitySuccess`."""
        self.add(torch.exp(wanted.double()) - torch.exp(other.double()), record)
