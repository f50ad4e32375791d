"""Fine-tuning one matrix on the targets of a batch, shared by the methods that do."""

from typing import NamedTuple

import torch
from torch import Tensor

from sphere_pl.errors import UserError
from sphere_pl.methods.problem import LayerProblem

RELATIVE_RATE = 0.02  # 5e-4, the papers' learning rate, for entries of 0.025, as 7- and 8-billion-parameter models have


class Descent(NamedTuple):
    """How a matrix is fine-tuned.

    Attributes:
        learning_rate: Adam's, as an absolute number.
        epochs: Passes over the batch.
        batch_size: Requests of one step.
        stop_loss: A mini-batch whose loss is below it takes no step, and an epoch whose mean is below it is the last.
        radius: No entry moves further than this from where it was before the batch; anywhere if None.
        relative_rate: Adam's learning rate if `learning_rate` is None, in units of the root mean square of the matrix's
            entries.
    """

    learning_rate: float | None
    epochs: int
    batch_size: int
    stop_loss: float
    radius: float | None = None
    relative_rate: float = RELATIVE_RATE

    def rate(self, weight: Tensor) -> float:
        """Adam's learning rate for a matrix."""
        return self.learning_rate or self.relative_rate * float(weight.square().mean().sqrt())

    def check(self, name: str) -> "Descent":
        """Refuse numbers out of range, quoting the method `name`."""
        for field in ("learning_rate", "relative_rate", "epochs", "batch_size"):
            given = getattr(self, field)
            if given is not None and given <= 0:
                raise UserError(f"`{name}({field}={given})` must be above 0.")
        if self.stop_loss < 0:
            raise UserError(f"`{name}(stop_loss={self.stop_loss})` must be at least 0.")
        if self.radius is not None and self.radius <= 0:
            raise UserError(f"`{name}(norm_constraint={self.radius})` must be above 0; null leaves entries free.")
        return self


def descend(problem: LayerProblem, plan: Descent, order: torch.Generator | None = None) -> Tensor:
    """Minimise the mean loss over a batch by Adam, breadth-first: every epoch passes over all requests.

    Args:
        problem: The batch, and the matrix to start from; it stays as it is.
        plan: Learning rate, epochs and so on.
        order: Draws the requests' order again for every epoch; the batch's own order if None.

    Returns:
        Δ of shape `[d_out, d_in]`.
    """
    weight = problem.weight.detach()
    current = weight.clone()
    optimizer = torch.optim.Adam([current], lr=plan.rate(weight))
    n = len(problem)
    for _ in range(plan.epochs):
        total = 0.0
        places = torch.arange(n) if order is None else torch.randperm(n, generator=order)
        for chosen in places.split(plan.batch_size):
            losses, gradient = problem.loss_and_gradient(current, chosen)
            total += float(losses.sum())
            if losses.mean() < plan.stop_loss:
                continue
            current.grad = gradient
            optimizer.step()
            if plan.radius is not None:
                current = _within(current, weight, plan.radius)
        if total / n < plan.stop_loss:
            break
    return current - weight


@torch.no_grad()
def _within(current: Tensor, center: Tensor, radius: float) -> Tensor:
    """Move every entry back into its interval, in place: the optimizer holds this very tensor."""
    return current.copy_(torch.clamp(current, center - radius, center + radius))
