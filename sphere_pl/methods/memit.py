"""MEMIT: mass editing by least squares over old and new associations (Meng et al., ICLR 2023, arXiv 2210.07229)."""

import torch
from torch import Tensor

from sphere_pl.errors import UserError
from sphere_pl.methods.base import Method, State, change_of
from sphere_pl.methods.functional import memit_update, moment_factor, specific_directions
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
        deviation_weight: Weight of the change's own norm `‖W − W₀‖²`, in units of what an ordinary direction weighs,
            the mean eigenvalue of `λ E[k kᵀ]`. With a memory this is RLSEdit (arXiv 2601.15686): recursive least
            squares over all keys so far with two soft anchors, the unedited weights and their map of ordinary keys,
            carried on by Woodbury's identity. RLSEdit's memory holds keys as they were solved with; here, as with every
            method, they are those of the edited model. Its weights are not settled by a public source.
        shared_directions: Share of the squared norm of ordinary keys; the leading directions of `E[k kᵀ]` that hold it
            are taken for features that all subjects have, and updates do not read from them. This is the key side of
            SUIT (arXiv 2509.24502), which keeps the directions of the entity alone, as far as its abstract says it; how
            the authors find these directions is not settled by a public source. Its other side, which keeps of a
            residual the directions of the object, is not here: no public source at hand defines it.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self,
        second_moment_weight: float | None = None,
        remember_past: bool = False,
        relative_weight: float | None = None,
        deviation_weight: float = 0.0,
        shared_directions: float = 0.0,
    ) -> None:
        if second_moment_weight is not None and second_moment_weight <= 0:
            raise UserError(f"`MEMIT(second_moment_weight={second_moment_weight})` must be above 0.")
        if relative_weight is not None and relative_weight <= 0:
            raise UserError(f"`MEMIT(relative_weight={relative_weight})` must be above 0.")
        if deviation_weight < 0:
            raise UserError(f"`MEMIT(deviation_weight={deviation_weight})` must be at least 0.")
        if not 0 <= shared_directions < 1:
            raise UserError(f"`MEMIT(shared_directions={shared_directions})` must be at least 0 and below 1.")
        self.deviation_weight, self.shared_directions = deviation_weight, shared_directions
        self.second_moment_weight, self.relative_weight = second_moment_weight, relative_weight
        self.remember_past = remember_past
        self.saved = frozenset(KeyMemory._fields) if remember_past else frozenset()

    @property
    def name(self) -> str:
        """The name shown in results."""
        anchored = self.remember_past and self.deviation_weight > 0
        name = "RLSEdit" if anchored else "MEMIT-seq" if self.remember_past else "MEMIT"
        return f"{name}, SUIT keys" if self.shared_directions else name

    def initial_state(self, weight: Tensor, second_moment: Tensor | None) -> State:
        """The inverse of `λ E[k kᵀ]`, in float64 as in the authors' code: the constant is factored once a run."""
        if second_moment is None:
            raise ValueError("MEMIT needs the second moment of the keys.")
        weight_of_all = self.second_moment_weight or (self.relative_weight or 1.0) * len(second_moment)
        weighted = weight_of_all * second_moment.to(weight.device, torch.float64)
        basis = specific_directions(weighted, self.shared_directions) if self.shared_directions else None
        if basis is not None:
            weighted = basis.T @ weighted @ basis
        if self.deviation_weight:
            weighted.diagonal().add_(self.deviation_weight * weighted.diagonal().mean())
        inverse = torch.cholesky_inverse(moment_factor(weighted))
        state = KeyMemory.empty(inverse, len(inverse))._asdict()
        return state if basis is None else {**state, "basis": basis}

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
        basis = d_in**2 if self.shared_directions else 0
        return 8 * (basis + (KeyMemory.most_numbers(d_in) if self.remember_past else d_in**2))

    def update(self, problem: LayerProblem, state: State) -> Tensor:
        """See `memit_update`."""
        wide = self._specific(problem.keys.double(), state)
        found = memit_update(wide, problem.residuals.double(), _memory(state).whiten(wide))
        return (found @ state["basis"].T if "basis" in state else found).to(problem.weight.dtype)

    def overlap(self, keys: Tensor, state: State) -> Tensor | None:
        """See `Method.overlap`."""
        return _memory(state).overlap(self._specific(keys.double(), state)) if self.remember_past else None

    def remember(self, problem: LayerProblem, state: State) -> State:
        """Add the batch's keys to the ordinary ones, if asked to."""
        if not self.remember_past:
            return state
        return {**state, **_memory(state).extend(self._specific(problem.keys.double(), state))._asdict()}

    def _specific(self, keys: Tensor, state: State) -> Tensor:
        """The keys in the coordinates of what is not shared."""
        return keys @ state["basis"] if "basis" in state else keys


def _memory(state: State) -> KeyMemory:
    return KeyMemory(*(state[name] for name in KeyMemory._fields))
