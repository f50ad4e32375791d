"""What an editing method is: a rule that turns what a batch asks of one matrix into that matrix's update."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from sphere_pl.methods.problem import LayerProblem
from sphere_pl.methods.retrieval import Retrieval

State = dict[str, Tensor]


class Method(ABC):
    """A rule that finds the update of one matrix from one batch.

    Methods are pure: all they know of the past is the `state` of the matrix at hand, which the editor keeps, moves
    between devices and saves. A new method is a subclass with two or three short functions and a YAML file that names
    it.

    Attributes:
        needs_targets: Whether it solves for keys and residuals of optimised target values; if not, it works on the
            likelihood of the targets themselves.
        needs_second_moment: Whether `initial_state` needs `E[k kᵀ]` of the unedited model.
        null_space_threshold: Eigenvalues of the second moment below it span the null space that the method edits in;
            None if it knows none.
        saved: Names of the state's tensors that change while editing and belong in a checkpoint.
        depth: Where a method that edits one matrix does so if no layer is given, as a share of the model's depth; None
            leaves it to what is found for the model.
        max_layers: How many matrices it can edit; any number if None. More are refused before the run starts.
        max_batch_size: How many edits it can make at once; any number if None. More are refused as well.
        plain_share: Weight of the plain prompt in a key, the sampled contexts sharing the rest; None weighs all alike.
        end_of_text: Whether the end-of-text token is part of each target whose likelihood is asked for.
        retrieval: How the model reads the facts of a method that edits no weight; None for a method that edits.
    """

    needs_targets: ClassVar[bool] = True
    needs_second_moment: bool = True
    null_space_threshold: float | None = None
    saved: frozenset[str] = frozenset()
    depth: ClassVar[float | None] = None
    max_layers: ClassVar[int | None] = None
    max_batch_size: ClassVar[int | None] = None
    plain_share: ClassVar[float | None] = 0.5
    end_of_text: bool = False
    retrieval: Retrieval | None = None

    @property
    def name(self) -> str:
        """The name shown in results."""
        return type(self).__name__

    @property
    def lever(self) -> str:
        """What to set, and which way, so that its updates do more of what they are asked; empty if there is nothing.

        Advice for a run whose edits do not hold, such as "--model.method.init_args.ridge below 10".
        """
        return ""

    @property
    def open_regularizer(self) -> tuple[str, float] | None:
        """Name and usual value of the argument that weighs its regulariser, if it was left open; None if it was not.

        It is relative to the model, and may then be found for a model that has no settings of its own.
        """
        return None

    @abstractmethod
    def initial_state(self, weight: Tensor, second_moment: Tensor | None) -> State:
        """Prepare one matrix.

        Args:
            weight: The unedited matrix, shape `[d_out, d_in]`.
            second_moment: `E[k kᵀ]` over ordinary text, shape `[d_in, d_in]`, if `needs_second_moment`.
        """

    def state_like(self, known: State, other: "Method", weight: Tensor, second_moment: Tensor | None) -> State:
        """What `initial_state` gives, where `other`, a method of this class, has given `known` for the same matrix.

        To be written where most of the work can be taken over.
        """
        return self.initial_state(weight, second_moment)

    @abstractmethod
    def update(self, problem: LayerProblem, state: State) -> Tensor:
        """Find one matrix's update.

        Args:
            problem: What the batch asks of the matrix.
            state: From `initial_state` and `remember`.

        Returns:
            Δ of shape `[d_out, d_in]`.
        """

    def remember(self, problem: LayerProblem, state: State) -> State:
        """Take the batch just edited into the state; its keys are now measured on the edited model.

        Returns:
            The new state; `state` itself if there is nothing to remember.
        """
        return state

    def overlap(self, keys: Tensor, state: State) -> Tensor | None:
        """How far keys are held by the regulariser and all earlier keys: `K (B + Σ k kᵀ)⁻¹ Kᵀ`, `[n, n]`.

        None for a method that remembers no keys. With it, a request whose key an earlier one has taken gets as much
        room as if it came first; see `methods.functional.room_of_taken_keys`.
        """
        return None

    def state_bytes(self, d_out: int, d_in: int) -> int:
        """How much memory the state of one matrix takes at most: a float64 `[d_in, d_in]`, or all but nothing."""
        return 8 * d_in**2 if self.needs_second_moment else 16 * (d_in + d_out)

    def preparation_bytes(self, d_in: int) -> int:
        """How much memory `initial_state` takes while it runs: a float32 moment, and three float64 `[d_in, d_in]`."""
        return 28 * d_in**2 if self.needs_second_moment else 0


def change_of(way: str, **settings: float | None) -> str:
    """Advice to change the first setting that is set.

    Args:
        way: `above` or `below`.
        **settings: The absolute one, and the relative one that holds if that is None.

    Example:
        >>> change_of("below", ridge=None, relative_ridge=1.0)
        '--model.method.init_args.relative_ridge below 1'
    """
    name, value = next((name, value) for name, value in settings.items() if value is not None)
    return f"--model.method.init_args.{name} {way} {value:g}"
