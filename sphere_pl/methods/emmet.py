"""EMMET: ROME's equality constraint for a whole batch (Gupta et al., EMNLP Findings 2024, arXiv 2403.14236)."""

import torch
from torch import Tensor

from sphere_pl.errors import UserError
from sphere_pl.methods.base import Method, State
from sphere_pl.methods.functional import emmet_update, moment_factor, whiten
from sphere_pl.methods.problem import LayerProblem


class EMMET(Method):
    """Equality-constrained editing: every key of the batch gets its value exactly, ordinary keys change least.

    Args:
        ridge: Softens the constraints where the keys of a batch are all but dependent: added to the diagonal of
            `Kᵀ C⁻¹ K` as a share of its mean. The authors' code adds an absolute number, 0.1 in the settings that
            circulate (EasyEdit's `emmet_lambda`), which means another thing for every model; 0 is the plain formula.

    Raises:
        UserError: If `ridge` is below 0.
    """

    def __init__(self, ridge: float = 1e-4) -> None:
        if ridge < 0:
            raise UserError(f"`EMMET(ridge={ridge})` must be at least 0.")
        self.ridge = ridge

    def initial_state(self, weight: Tensor, second_moment: Tensor | None) -> State:
        """The Cholesky factor of `E[k kᵀ]`; its scale cancels out of the update."""
        if second_moment is None:
            raise ValueError("EMMET needs the second moment of the keys.")
        return {"factor": moment_factor(second_moment.to(weight.device, torch.float64, copy=True))}

    def update(self, problem: LayerProblem, state: State) -> Tensor:
        """See `emmet_update`."""
        wide = problem.keys.double()
        found = emmet_update(wide, problem.residuals.double(), whiten(wide, state["factor"]), self.ridge)
        return found.to(problem.weight.dtype)
