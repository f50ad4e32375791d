"""What one edit batch asks of one matrix: all that a method is given, beside what it remembers."""

from abc import ABC, abstractmethod

from torch import Tensor


class LayerProblem(ABC):
    """One matrix, one batch; whatever is behind it computes only what is asked for.

    A method that solves for target values reads `keys` and `residuals`; one that works on the likelihood of the targets
    calls `loss_and_gradient` or `features`. Shapes: `n` requests, `t` tokens that are read.

    Args:
        weight: The matrix before the batch, float32 `[d_out, d_in]`; not to be changed.
        name: Its name, for messages.

    Attributes:
        strength: How many times as strong the method's regulariser shall be; see `GuardSettings`. Keys and residuals
            are divided by its square root, which for least squares weighs the regulariser and all earlier keys that
            many times.
        row_weights: How many times as much each request counts, `[n]`; all once if None. Rows of keys and residuals
            are multiplied by its square root.
    """

    def __init__(self, weight: Tensor, name: str = "the matrix") -> None:
        self.weight, self.name = weight, name
        self.strength = 1.0
        self.row_weights: Tensor | None = None

    @property
    def keys(self) -> Tensor:
        """Keys K of the batch at the matrix's input, averaged over contexts, float32 `[n, d_in]`."""
        return self._weighed(self._keys())

    @property
    def residuals(self) -> Tensor:
        """Residuals R: what the matrix's output shall gain at the keys, float32 `[n, d_out]`."""
        return self._weighed(self._residuals())

    @abstractmethod
    def _keys(self) -> Tensor: ...

    @abstractmethod
    def _residuals(self) -> Tensor: ...

    def _weighed(self, rows: Tensor) -> Tensor:
        # At strength 1 the tensor as it lies in memory: a copy could be rounded in another way.
        rows = rows if self.strength == 1 else rows / self.strength**0.5
        return rows if self.row_weights is None else rows * self.row_weights.to(rows).sqrt()[:, None]

    def taken(self) -> tuple[Tensor, Tensor] | None:
        """Keys that earlier requests have taken, where a request of the batch has nearly the same.

        Returns:
            The keys `[e, d_in]`, and which of them are in the way of which request `[n, e]`; None if there are none.
        """
        return None

    @abstractmethod
    def __len__(self) -> int:
        """How many requests the batch has."""

    @abstractmethod
    def loss_and_gradient(self, weight: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """How unlikely the model finds the targets with another matrix in this one's place.

        Args:
            weight: The matrix to try, float32 `[d_out, d_in]`.
            chosen: Numbers of the requests, `[m]`.

        Returns:
            Negative log-likelihood of each, the mean over its target's tokens, `[m]`, and the gradient of the mean over
            the requests, float32 `[d_out, d_in]`.
        """

    @abstractmethod
    def features(self) -> tuple[Tensor, Tensor]:
        """Look at the matrix on the model as it was before the batch.

        Returns:
            Its input at every token that is read, float32 `[t, d_in]`, and the gradient of the negative log-likelihood
            of the token's request with respect to its output there, float32 `[t, d_out]`.
        """


class KnownProblem(LayerProblem):
    """A problem whose keys and residuals are at hand, with no model behind them: a saved run's, or a test's.

    Args:
        keys: `[n, d_in]`.
        residuals: `[n, d_out]`.
        weight: The matrix before the batch; zeros if left out.
        name: Its name, for messages.

    Example:
        >>> import torch
        >>> problem = KnownProblem(torch.eye(2), torch.ones(2, 3))
        >>> problem.strength = 4.0
        >>> problem.keys
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """

    def __init__(self, keys: Tensor, residuals: Tensor, weight: Tensor | None = None, name: str = "the matrix") -> None:
        super().__init__(keys.new_zeros(residuals.shape[1], keys.shape[1]) if weight is None else weight, name)
        self._known = keys, residuals

    def _keys(self) -> Tensor:
        return self._known[0]

    def _residuals(self) -> Tensor:
        return self._known[1]

    def __len__(self) -> int:
        return len(self._known[0])

    def loss_and_gradient(self, weight: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Not without a model.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("Keys and residuals are all that is known here: there is no model to take a gradient of.")

    def features(self) -> tuple[Tensor, Tensor]:
        """Not without a model.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("Keys and residuals are all that is known here: there is no model to look at.")
