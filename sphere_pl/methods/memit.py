"""MEMIT: mass editing by least squares over old and new associations (Meng et al., ICLR 2023, arXiv 2210.07229)."""

import torch
from torch import Tensor

from sphere_pl.errors import UserError
from sphere_pl.methods.base import Method, State, change_of
from sphere_pl.methods.functional import memit_update, moment_factor
from sphere_pl.methods.memory import KeyMemory
from sphere_pl.methods.problem import LayerProblem


class MEMIT(Method):
    """Least-squares editing that weighs the model's ordinary keys against the new ones.

    Args:
        second_moment_weight: λ, how many ordinary keys one new key has to stand up to (15,000 for LLaMA3-8B).
        remember_past: Whether earlier edits' keys join the ordinary ones (sequential MEMIT).
        relative_weight: λ if `second_moment_weight` is None, in units of d_in: an ordinary key k has
            `kᵀ E[k kᵀ]⁻¹ k = d_in` on the average. The papers' numbers are 0.8 to 1.0 of it, for GPT2-XL 3.1. If that
            is None too, it is what is found for the model, or 1.

    Raises:
        UserError: If a weight is not above 0.
    """

    def __init__(
        self,
        second_moment_weight: float | None = None,
        remember_past: bool = False,
        relative_weight: float | None = None,
    ) -> None:
        if second_moment_weight is not None and second_moment_weight <= 0:
            raise UserError(f"`MEMIT(second_moment_weight={second_moment_weight})` must be above 0.")
        if relative_weight is not None and relative_weight <= 0:
            raise UserError(f"`MEMIT(relative_weight={relative_weight})` must be above 0.")
        self.second_moment_weight, self.relative_weight = second_moment_weight, relative_weight
        self.remember_past = remember_past
        self.saved = frozenset(KeyMemory._fields) if remember_past else frozenset()

    @property
    def name(self) -> str:
        """The name shown in results."""
        return "MEMIT-seq" if self.remember_past else "MEMIT"

    def initial_state(self, weight: Tensor, second_moment: Tensor | None) -> State:
        """The inverse of `λ E[k kᵀ]`, in float64 as in the authors' code: the constant is factored once a run."""
        if second_moment is None:
            raise ValueError("MEMIT needs the second moment of the keys.")
        weight_of_all = self.second_moment_weight or (self.relative_weight or 1.0) * len(second_moment)
        weighted = weight_of_all * second_moment.to(weight.device, torch.float64)
        inverse = torch.cholesky_inverse(moment_factor(weighted))
        return KeyMemory.empty(inverse, len(inverse))._asdict()

    @property
    def lever(self) -> str:
        """See `Method.lever`."""
        weight, relative = self.second_moment_weight, self.relative_weight or 1.0
        return change_of("below", second_moment_weight=weight, relative_weight=relative)

    @property
    def open_regularizer(self) -> tuple[str, float] | None:
        """See `Method.open_regularizer`."""
        both = (self.second_moment_weight, self.relative_weight)
        return ("relative_weight", 1.0) if both == (None, None) else None

    def state_bytes(self, d_out: int, d_in: int) -> int:
        """The inverse, and recent keys beside it if they are remembered."""
        return 8 * (KeyMemory.most_numbers(d_in) if self.remember_past else d_in**2)

    def update(self, problem: LayerProblem, state: State) -> Tensor:
        """See `memit_update`."""
        wide = problem.keys.double()
        found = memit_update(wide, problem.residuals.double(), KeyMemory(**state).whiten(wide))
        return found.to(problem.weight.dtype)

    def overlap(self, keys: Tensor, state: State) -> Tensor | None:
        """See `Method.overlap`."""
        return KeyMemory(**state).overlap(keys.double()) if self.remember_past else None

    def remember(self, problem: LayerProblem, state: State) -> State:
        """Add the batch's keys to the ordinary ones, if asked to."""
        return KeyMemory(**state).extend(problem.keys.double())._asdict() if self.remember_past else state
