"""AlphaEdit: updates confined to the null space of what the model knows (Fang et al., ICLR 2025, arXiv 2410.02355)."""

from typing import Literal

from torch import Tensor

from sphere_pl.errors import UserError
from sphere_pl.methods.base import Method, State, change_of
from sphere_pl.methods.functional import alphaedit_update, energy_within, null_space_basis, null_space_of_share
from sphere_pl.methods.memory import KeyMemory, MovingNullSpace
from sphere_pl.methods.problem import LayerProblem

RELATIVE_RIDGE = 0.1  # with which three models of 135 to 500 million parameters keep what they are taught


class AlphaEdit(Method):
    """Null-space constrained editing with memory of all earlier keys.

    By default both constants are relative to what the keys of the matrix at hand are like, so that they mean the same
    in every model; the paper's are absolute: `AlphaEdit(ridge=10.0, null_space_threshold=0.02)`.

    Args:
        ridge: Weight of the update's norm, λ, as an absolute number (the paper's L2; 10 for LLaMA3-8B and Qwen2.5-7B).
        null_space_threshold: Eigenvalues of the second moment below it span the null space, as an absolute number (0.02
            in the paper).
        relative_ridge: λ if `ridge` is None, in units of the mean squared norm that ordinary keys have in the null
            space. If that is None too, it is what is found for the model, or 0.1.
        null_space_share: Which share of key space is the null space if `null_space_threshold` is None: that in which
            ordinary keys are smallest.
        null_space: `fixed` is AlphaEdit: the null space is the ordinary keys', and earlier edits are weighed against
            new ones. `moving` is EvoEdit (arXiv 2510.13851): the null space is what the keys of earlier edits leave of
            it, so that no update moves the output at one of them, and each edit takes a direction that none can have
            afterwards. Of EvoEdit the public abstract settles that the null space is aligned again for each edit; that
            it loses the span of the edited model's keys exactly, and the bound below which a key counts as dependent,
            are this implementation's own.

    Raises:
        UserError: If an argument is out of range, a matrix has no null space at this threshold, or all of a moving null
            space is taken.
    """

    def __init__(
        self,
        ridge: float | None = None,
        null_space_threshold: float | None = None,
        relative_ridge: float | None = None,
        null_space_share: float = 0.8,
        null_space: Literal["fixed", "moving"] = "fixed",
    ) -> None:
        if any(given is not None and given <= 0 for given in (ridge, relative_ridge)):
            raise UserError(
                f"`AlphaEdit(ridge={ridge}, relative_ridge={relative_ridge})` must be above 0: the system has no "
                "unique solution otherwise."
            )
        if null_space_threshold is not None and null_space_threshold <= 0:
            raise UserError(f"`AlphaEdit(null_space_threshold={null_space_threshold})` must be above 0.")
        if not 0 < null_space_share < 1:
            raise UserError(f"`AlphaEdit(null_space_share={null_space_share})` must lie between 0 and 1.")
        if null_space not in ("fixed", "moving"):
            raise UserError(f"`AlphaEdit(null_space={null_space!r})` must be fixed or moving.")
        self.null_space = null_space
        self.saved = frozenset(self._memory._fields)
        self.ridge, self.relative_ridge = ridge, relative_ridge
        self.null_space_threshold: float | None = null_space_threshold
        self.null_space_share = null_space_share

    @property
    def name(self) -> str:
        """The name shown in results."""
        return "AlphaEdit" if self.null_space == "fixed" else "EvoEdit"

    @property
    def _memory(self) -> type[KeyMemory] | type[MovingNullSpace]:
        return KeyMemory if self.null_space == "fixed" else MovingNullSpace

    def initial_state(self, weight: Tensor, second_moment: Tensor | None) -> State:
        """The null-space basis, and no past keys."""
        if second_moment is None:
            raise ValueError("AlphaEdit needs the second moment of the keys.")
        moment = second_moment.to(weight)
        if self.null_space_threshold is None:
            basis = null_space_of_share(moment, self.null_space_share)
        else:
            basis = null_space_basis(moment, self.null_space_threshold)
        if basis.shape[1] == 0:
            raise UserError(
                f"`AlphaEdit(null_space_threshold={self.null_space_threshold})` leaves no direction to edit in. "
                f"The keys' mean square is {float(second_moment.diagonal().mean()):.2e}: raise the threshold "
                "towards it."
            )
        return self._state(moment, basis)

    def state_like(self, known: State, other: Method, weight: Tensor, second_moment: Tensor | None) -> State:
        """With the same null space, if that is the same."""
        names = ("null_space_threshold", "null_space_share")
        if second_moment is None or any(getattr(self, name) != getattr(other, name) for name in names):
            return self.initial_state(weight, second_moment)
        return self._state(second_moment.to(weight), known["basis"].to(weight.device))

    def _state(self, moment: Tensor, basis: Tensor) -> State:
        ridge = self.ridge or (self.relative_ridge or RELATIVE_RIDGE) * energy_within(moment, basis)
        memory = self._memory.empty(basis.new_tensor(1 / ridge), basis.shape[1])
        return {"basis": basis, **memory._asdict()}

    @property
    def lever(self) -> str:
        """See `Method.lever`."""
        return change_of("below", ridge=self.ridge, relative_ridge=self.relative_ridge or RELATIVE_RIDGE)

    @property
    def open_regularizer(self) -> tuple[str, float] | None:
        """See `Method.open_regularizer`."""
        return ("relative_ridge", RELATIVE_RIDGE) if self.ridge is None and self.relative_ridge is None else None

    def state_bytes(self, d_out: int, d_in: int) -> int:
        """Basis and memory, should every direction lie in the null space."""
        return 4 * (d_in**2 + KeyMemory.most_numbers(d_in))

    def preparation_bytes(self, d_in: int) -> int:
        """The moment as it is and capped, its eigenvectors, and LAPACK's room to find them: two matrices more."""
        return 20 * d_in**2

    def update(self, problem: LayerProblem, state: State) -> Tensor:
        """See `alphaedit_update`."""
        past = self._past(state)
        if isinstance(past, MovingNullSpace) and len(past.taken) >= past.taken.shape[1]:
            raise UserError(
                f"The moving null space of {problem.name} is full: earlier edits have taken all {len(past.taken)} of "
                "its directions. Raise --model.method.init_args.null_space_share, edit more layers (--model.layers), "
                "or set --model.method.init_args.null_space=fixed, which weighs earlier edits and forbids none."
            )
        return alphaedit_update(problem.keys, problem.residuals, state["basis"], past)

    def overlap(self, keys: Tensor, state: State) -> Tensor | None:
        """See `Method.overlap`; keys count by their part in the null space. A moving one gives nothing back."""
        past = self._past(state)
        return past.overlap(keys @ state["basis"]) if isinstance(past, KeyMemory) else None

    def remember(self, problem: LayerProblem, state: State) -> State:
        """Add the batch's keys to the past."""
        return {**state, **self._past(state).extend(problem.keys @ state["basis"])._asdict()}

    def _past(self, state: State) -> KeyMemory | MovingNullSpace:
        return self._memory(*(state[name] for name in self._memory._fields))
