"""UltraEdit: one forward and one backward pass, lifelong normalisation (Gu et al., TMLR 2026, arXiv 2505.14679)."""

import torch
from torch import Tensor

from sphere_pl.errors import UserError
from sphere_pl.methods.base import Method, State, change_of
from sphere_pl.methods.functional import Moments, ultraedit_update
from sphere_pl.methods.problem import LayerProblem


class UltraEdit(Method):
    """Closed-form editing from hidden states and gradients, without optimised targets.

    For every token of question and target, the input h of the matrix and the gradient g of the loss with respect to its
    output are measured on the model as it is before the batch. Both are normalised feature by feature with the mean and
    standard deviation over all tokens of the stream so far, this batch's included ("lifelong normalisation"). The
    output shall gain `v = -η ‖ĥ‖² ĝ`, and `Δᵀ = (HᵀH + I)⁻¹ Hᵀ V` with the keys H as they are.

    The formulas are those of the authors' public code; the paper itself was not at hand. Deviations:

    - The down-projections of `model.layers` are edited, as by every method here; the authors edit gate- and
      up-projections of 12 to 18 layers. A learning rate that suits those need not suit these.
    - Each request's loss is weighed alike; the authors average over the target tokens of 10 requests. The last token of
      the target is predicted and not read, so it is no row of H (its gradient is zero).
    - Statistics and the solve are float64.

    Args:
        learning_rate: η, as an absolute number (1e-6 in the authors' settings for 7- and 8-billion-parameter models).
        relative_rate: What an output's entries gain by `η ‖ĥ‖² ĝ` on the average if `learning_rate` is None, in units
            of their root mean square: η is this times the root mean square over d_in.

    Raises:
        UserError: If a rate is not above 0.
    """

    needs_targets = False
    needs_second_moment = False
    saved: frozenset[str] = frozenset({"seen", "mean", "squares"})

    def __init__(self, learning_rate: float | None = None, relative_rate: float = 0.02) -> None:
        for name, rate in (("learning_rate", learning_rate), ("relative_rate", relative_rate)):
            if rate is not None and rate <= 0:
                raise UserError(f"`UltraEdit({name}={rate})` must be above 0.")
        self.learning_rate, self.relative_rate = learning_rate, relative_rate

    @property
    def lever(self) -> str:
        """See `Method.lever`."""
        return change_of("above", learning_rate=self.learning_rate, relative_rate=self.relative_rate)

    def initial_state(self, weight: Tensor, second_moment: Tensor | None) -> State:
        """Statistics of no token at all."""
        zeros = torch.zeros(sum(weight.shape), dtype=torch.float64, device=weight.device)
        return {"seen": zeros.new_zeros(()), "mean": zeros, "squares": zeros.clone()}

    def update(self, problem: LayerProblem, state: State) -> Tensor:
        """See `ultraedit_update`."""
        keys, gradients = (each.double() for each in problem.features())
        moments = Moments(**state).merge(torch.cat([keys, gradients], dim=1))
        return ultraedit_update(keys, gradients, moments, self._rate(keys, problem.weight)).to(problem.weight.dtype)

    def _rate(self, keys: Tensor, weight: Tensor) -> float:
        """η for tokens with these keys `[t, d_in]`."""
        if self.learning_rate is not None:
            return self.learning_rate
        outputs = keys @ weight.double().T
        return self.relative_rate * float(outputs.square().mean().sqrt()) / keys.shape[1]

    def remember(self, problem: LayerProblem, state: State) -> State:
        """Take the batch's tokens into the statistics."""
        return Moments(**state).merge(torch.cat(problem.features(), dim=1).double())._asdict()
