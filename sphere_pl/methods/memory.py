"""What a method remembers of earlier keys, as the inverse that its solves need.

Shapes: `m` key dimensions (`d_in`, or the directions of a null space), `n` keys of a batch, `p` recent keys.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Recent keys are taken into the inverse when there are more than m / _SHARE of them. With 4 the rows kept beside it
# take a third of its memory, and taking them in, which costs 2 p m² operations, stays below what applying it costs.
_SHARE = 4
_DEPENDENT = 1e-4  # of the longest key: what is left of a key that earlier ones all but span


class KeyMemory(NamedTuple):
    """The inverse of `B + Σ k kᵀ` over all earlier keys, in a form that is cheap to apply and to extend.

    B is the regulariser: λ I for AlphaEdit, a weighted second moment for MEMIT. By Woodbury's identity

        (B + Σ k kᵀ)⁻¹ = H − Wᵀ (L Lᵀ)⁻¹ W

    where H is the inverse with older keys only, W holds `H k` of the p recent ones and `L Lᵀ = I + K H Kᵀ`. A further
    batch borders L, as one more step of a blocked Cholesky factorisation would. While no more than m / 4 keys have been
    seen H stays B⁻¹, which for λ I is a number: nothing of size m x m exists yet. Later the cost of a batch does not
    depend on how many keys there have been.

    Attributes:
        inverse: H, shape `[m, m]`, or `[]` for a multiple of the identity.
        whitened: W, shape `[p, m]`.
        factor: L, lower triangular, shape `[p, p]`.
    """

    inverse: Tensor
    whitened: Tensor
    factor: Tensor

    @classmethod
    def empty(cls, inverse: Tensor, size: int) -> "KeyMemory":
        """No keys yet; `inverse` is B⁻¹, of shape `[m, m]` or `[]`, and `size` is m."""
        return cls(inverse, inverse.new_zeros(0, size), inverse.new_zeros(0, 0))

    @staticmethod
    def most_numbers(size: int) -> int:
        """How many numbers a memory of `size` dimensions holds at most."""
        recent = size // _SHARE
        return size**2 + recent * size + recent**2

    def whiten(self, keys: Tensor) -> Tensor:
        """`(B + Σ k kᵀ)⁻¹ k` for each row of `keys` `[n, m]`.

        Example:
            >>> memory = KeyMemory.empty(torch.tensor(0.5), size=2)  # B = 2 I
            >>> memory.extend(torch.tensor([[1.0, 0.0]])).whiten(torch.tensor([[3.0, 2.0]]))
            tensor([[1., 1.]])
        """
        plain = self._older(keys)
        if not len(self.factor):
            return plain
        return plain - torch.cholesky_solve(self.whitened @ keys.T, self.factor).T @ self.whitened

    def overlap(self, keys: Tensor) -> Tensor:
        """`K (B + Σ k kᵀ)⁻¹ Kᵀ` for the rows of `keys` `[n, m]`, `[n, n]`."""
        return self.whiten(keys) @ keys.T

    def extend(self, keys: Tensor) -> "KeyMemory":
        """Take in further keys `[n, m]`."""
        plain = self._older(keys)
        cross = torch.linalg.solve_triangular(self.factor, self.whitened @ keys.T, upper=False)  # [p, n]
        corner = plain @ keys.T - cross.T @ cross
        corner.diagonal().add_(1.0)
        root, failed = torch.linalg.cholesky_ex(corner)
        # Keys that are no numbers spoil the memory here; the next solve then finds it out and is refused with a reason.
        root = torch.where(failed == 0, root, torch.nan)
        above = torch.cat([self.factor, self.factor.new_zeros(cross.shape)], dim=1)
        below = torch.cat([cross.T, root], dim=1)
        grown = KeyMemory(self.inverse, torch.cat([self.whitened, plain]), torch.cat([above, below]))
        return grown._absorbed() if len(grown.factor) * _SHARE > keys.shape[1] else grown

    def _older(self, keys: Tensor) -> Tensor:
        return keys @ self.inverse if self.inverse.ndim else keys * self.inverse

    def _absorbed(self) -> "KeyMemory":
        """Take the recent keys into H."""
        size = self.whitened.shape[1]
        inverse = self.inverse
        if not inverse.ndim:
            inverse = inverse * torch.eye(size, dtype=inverse.dtype, device=inverse.device)
        root = torch.linalg.solve_triangular(self.factor, self.whitened, upper=False)  # [p, m]
        return KeyMemory.empty(torch.addmm(inverse, root.T, root, alpha=-1), size)


class MovingNullSpace(NamedTuple):
    """A null space that every batch's keys leave: no later edit can be read there (EvoEdit, arXiv 2510.13851).

    The place of a `KeyMemory` with B = λ I: where that weighs earlier keys, this one forbids their directions. With P
    the projector onto what is left of the null space, `whiten` is `P k / λ`, and an update found with it changes the
    output at no earlier key. Each independent key takes one direction; when all are taken nothing can be edited.

    Attributes:
        ridge_inverse: 1 / λ, shape `[]`.
        taken: Orthonormal rows that earlier keys span, `[p, m]`.
    """

    ridge_inverse: Tensor
    taken: Tensor

    @classmethod
    def empty(cls, ridge_inverse: Tensor, size: int) -> "MovingNullSpace":
        """Nothing is taken yet of `size` directions; `ridge_inverse` is a scalar."""
        return cls(ridge_inverse, ridge_inverse.new_zeros(0, size))

    def whiten(self, keys: Tensor) -> Tensor:
        """`P k / λ` for each row of `keys` `[n, m]`.

        Example:
            >>> memory = MovingNullSpace.empty(torch.tensor(0.5), size=2)
            >>> memory.extend(torch.tensor([[3.0, 0.0]])).whiten(torch.tensor([[3.0, 2.0]]))
            tensor([[0., 1.]])
        """
        return self._left(keys) * self.ridge_inverse

    def extend(self, keys: Tensor) -> "MovingNullSpace":
        """Take the directions of further keys `[n, m]`, but for what earlier ones span up to rounding."""
        left = self._left(self._left(keys))  # twice: what rounding leaves of taken directions would be taken again
        if not bool(left.isfinite().all()):  # found out by the next solve, which is refused with a reason
            return self._replace(taken=torch.cat([self.taken, torch.full_like(keys[:1], torch.nan)]))
        _, values, rows = torch.linalg.svd(left, full_matrices=False)
        new = rows[values > _DEPENDENT * torch.linalg.vector_norm(keys, dim=1).max()]
        return self._replace(taken=torch.cat([self.taken, new]))

    def _left(self, keys: Tensor) -> Tensor:
        return keys - (keys @ self.taken.T) @ self.taken
