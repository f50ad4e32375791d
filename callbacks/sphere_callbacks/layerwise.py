"""An optimizer that edits matrices one after another, evaluating its closure before each.

Each edited layer's keys and residuals depend on the layers already edited, so the update of a layer can only be
computed once the layers before it have moved. `torch.optim.LBFGS` has the same need and calls its closure again.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Closure = Callable[[], Any]


class LayerwiseEdit(Optimizer):
    """Apply `weight -= lr * grad` to one parameter group after another.

    Before each group the closure is called; it leaves `grad = -Δ` on the weight of the group `active_group`, and
    there alone. Under Lightning the hook `on_before_optimizer_step` fires after every evaluation of the closure, so
    callbacks see each layer's update before it is applied, and one call of `step` counts as one global step.

    Args:
        params: One group for each edited matrix, shallow to deep, each with a single parameter.
        lr: Factor of the update; 1 applies it as it is.
        before_update: Called with the group's index when its update is known and before its weight moves: where a loop
            without Lightning calls `on_before_optimizer_step`, or changes the gradient itself.
        after_update: Called with the group's index after its weight has moved.

    Raises:
        ValueError: If a group holds more than one parameter.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
        >>> optimizer = LayerwiseEdit([{"params": [weight]}])
        >>> def solve():
        ...     weight.grad = -torch.eye(2)
        >>> optimizer.step(solve)
        >>> weight.data
        tensor([[1., 0.],
                [0., 1.]])
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1.0,
        before_update: Callable[[int], None] | None = None,
        after_update: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr})
        for index, group in enumerate(self.param_groups):
            if len(group["params"]) != 1:
                raise ValueError(
                    f"LayerwiseEdit group {index} has {len(group['params'])} parameters, expected 1. Give each edited "
                    "matrix a group of its own."
                )
        self.active_group = 0
        self.before_update, self.after_update = before_update, after_update

    def step(self, closure: Closure | None = None) -> None:  # type: ignore[override]
        """Edit every group.

        Args:
            closure: Computes the update of the active group and leaves it in `.grad`.

        Raises:
            RuntimeError: Without a closure, without a gradient on the active weight, or with one elsewhere.
        """
        if closure is None:
            raise RuntimeError("LayerwiseEdit.step() needs a closure that leaves -update in the active weight's .grad.")
        self.zero_grad(set_to_none=True)
        for index, group in enumerate(self.param_groups):
            self.active_group = index
            with torch.enable_grad():
                closure()
            self._check_gradients(index)
            if self.before_update is not None:
                self.before_update(index)
            weight = group["params"][0]
            with torch.no_grad():
                weight.add_(weight.grad, alpha=-group["lr"])
            weight.grad = None
            if self.after_update is not None:
                self.after_update(index)

    def _check_gradients(self, active: int) -> None:
        for index, group in enumerate(self.param_groups):
            has_gradient = group["params"][0].grad is not None
            if has_gradient != (index == active):
                found, expected = ("a", "none") if has_gradient else ("no", "one")
                raise RuntimeError(
                    f"After the closure for group {active}, group {index} has {found} gradient, expected {expected}. "
                    "The closure must leave -update in the .grad of `param_groups[active_group]` alone; precision "
                    "'16-mixed' calls it only once and cannot be used."
                )
