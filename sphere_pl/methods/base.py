"""What an editing method is: a rule that turns what a batch asks of one matrix into that matrix's update."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor

State = dict[str, Tensor]


class Method(ABC):
    """What all methods have in common; subclass `EditingMethod` or `LikelihoodMethod`.

    Methods are pure: all they know of the past is the `state` of the matrix at hand, which the editor keeps, moves
    between devices and saves. A new method is a subclass with three short functions and a YAML file that names it.

    Attributes:
        needs_second_moment: Whether `initial_state` needs `E[k kᵀ]` of the unedited model.
        null_space_threshold: Eigenvalues of the second moment below it span the null space that the method edits in;
            None if it knows none.
        saved: Names of the state's tensors that change while editing and belong in a checkpoint.
        max_layers: How many matrices it can edit; any number if None. More are refused before the run starts.
        max_batch_size: How many edits it can make at once; any number if None. More are refused as well.
    """

    needs_second_moment: bool = True
    null_space_threshold: float | None = None
    saved: frozenset[str] = frozenset()
    max_layers: ClassVar[int | None] = None
    max_batch_size: ClassVar[int | None] = None

    @property
    def name(self) -> str:
        """The name shown in results."""
        return type(self).__name__

    @abstractmethod
    def initial_state(self, weight: Tensor, second_moment: Tensor | None) -> State:
        """Prepare one matrix.

        Args:
            weight: The unedited matrix, shape `[d_out, d_in]`.
            second_moment: `E[k kᵀ]` over ordinary text, shape `[d_in, d_in]`, if `needs_second_moment`.
        """

    def state_bytes(self, d_out: int, d_in: int) -> int:
        """How much memory the state of one matrix takes at most: a float64 `[d_in, d_in]`, or all but nothing."""
        return 8 * d_in**2 if self.needs_second_moment else 16 * (d_in + d_out)

    def preparation_bytes(self, d_in: int) -> int:
        """How much memory `initial_state` takes while it runs: a float32 moment, and three float64 `[d_in, d_in]`."""
        return 28 * d_in**2 if self.needs_second_moment else 0


class EditingMethod(Method):
    """A closed-form method that locates keys and solves for the target values found for them.

    Attributes:
        plain_share: Weight of the plain prompt in a key, the sampled contexts sharing the rest; None weighs all alike.
    """

    plain_share: ClassVar[float | None] = 0.5

    @abstractmethod
    def update(self, keys: Tensor, residuals: Tensor, state: State) -> Tensor:
        """Solve for one matrix's update.

        Args:
            keys: Keys of the batch, float32 `[n, d_in]`.
            residuals: What the matrix's output shall gain, float32 `[n, d_out]`.
            state: From `initial_state` and `remember`.

        Returns:
            Δ of shape `[d_out, d_in]`.
        """

    def remember(self, keys: Tensor, state: State) -> State:
        """Take the keys of the batch just edited, measured on the edited model, into the state."""
        return state


class Solved(NamedTuple):
    """What an `EditingMethod` was asked for one matrix and batch.

    Attributes:
        keys: Keys given to `update`, `[n, d_in]`.
        residuals: Residuals given to it, `[n, d_out]`.
        remembered: Keys that `remember` took into the state, `[n, d_in]`; None if it took nothing.
    """

    keys: Tensor
    residuals: Tensor
    remembered: Tensor | None = None


class Objective(Protocol):
    """How unlikely the model finds the targets of a batch, as a function of one edited matrix."""

    def __len__(self) -> int:
        """How many requests the batch has."""

    def loss_and_gradient(self, weight: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate some requests.

        Args:
            weight: The matrix, float32 `[d_out, d_in]`.
            chosen: Numbers of the requests, `[m]`.

        Returns:
            Negative log-likelihood of each, the mean over its target's tokens, `[m]`, and the gradient of the mean over
            the requests, float32 `[d_out, d_in]`.
        """

    def features(self) -> tuple[Tensor, Tensor]:
        """Look at the matrix on the model as it was before the batch.

        Returns:
            Its input at every token that is read, float32 `[t, d_in]`, and the gradient of the negative log-likelihood
            of the token's request with respect to its output there, float32 `[t, d_out]`.
        """


class LikelihoodMethod(Method):
    """A method without target values: it works on the likelihood of the targets itself.

    Attributes:
        end_of_text: Whether the end-of-text token is part of each target.
    """

    needs_second_moment = False
    end_of_text: bool = False

    @abstractmethod
    def update(self, objective: Objective, weight: Tensor, state: State) -> Tensor:
        """Find one matrix's update.

        Args:
            objective: The batch.
            weight: The matrix before the batch, float32 `[d_out, d_in]`; not to be changed.
            state: From `initial_state` and `remember`.

        Returns:
            Δ of shape `[d_out, d_in]`.
        """

    def remember(self, objective: Objective, state: State) -> State:
        """Take the batch just edited into the state."""
        return state
