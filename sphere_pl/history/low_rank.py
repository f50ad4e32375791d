"""Changes of matrices, kept as two thin factors where that is smaller.

An update of n edits has rank n at most, so `n (d_out + d_in)` numbers say all about it. What is kept is the difference
of two float32 matrices, which also holds the rounding of their entries: that noise has full rank and is left out.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Entries of W + Δ are rounded to float32, and so were the products that made Δ: what lies below is noise.
ROUNDING = 4 * torch.finfo(torch.float32).eps
_OVERSAMPLING = 8
_GROWTH = 4  # what is found too much is trimmed
_SEED = 0


class Factors(NamedTuple):
    """A matrix `left @ right`.

    Attributes:
        left: Shape `[d_out, r]`.
        right: Shape `[r, d_in]`.
    """

    left: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        """The number of columns r."""
        return self.left.shape[1]


Change = Factors | Tensor


def expand(change: Change) -> Tensor:
    """The change as a full matrix `[d_out, d_in]`."""
    return change.left @ change.right if isinstance(change, Factors) else change


def shape_of(change: Change) -> tuple[int, int]:
    """`(d_out, d_in)`."""
    if isinstance(change, Factors):
        return change.left.shape[0], change.right.shape[1]
    return change.shape[0], change.shape[1]


def rank_of(change: Change) -> int | None:
    """How many columns the factors have; None for a full matrix."""
    return change.rank if isinstance(change, Factors) else None


def compress(change: Tensor, expected_rank: int, tolerance: float) -> Change:
    """Find factors of a change up to a tolerance, by a randomised range finder (Halko et al. 2011, Alg. 4.2).

    Args:
        change: Finite or not, float32 `[d_out, d_in]`.
        expected_rank: Where to begin; raised until the tolerance is met.
        tolerance: Frobenius norm of what may be left out.

    Returns:
        Factors of the smallest rank that meets the tolerance, or the change itself if it is not finite, or factors
        would be no smaller.

    Example:
        >>> compress(torch.ones(40, 30), expected_rank=1, tolerance=1e-3).rank
        1
    """
    d_out, d_in = change.shape
    rank = max(1, expected_rank)
    # Entries beyond float32 leave no finite norm: such a change is kept as it is.
    if not bool(torch.isfinite(change).all()):
        return change
    while rank * (d_out + d_in) < d_out * d_in:
        factors = _leading_part(change, rank)
        if float(torch.linalg.matrix_norm(change - expand(factors))) <= tolerance:
            return _trim(factors, tolerance)
        rank *= _GROWTH
    return change


def _leading_part(change: Tensor, rank: int) -> Factors:
    """Project onto the range of the change's products with a few random vectors."""
    columns = min(rank + _OVERSAMPLING, *change.shape)
    # A generator of its own: the run's random numbers stay what they are without the log.
    random = torch.randn(change.shape[1], columns, generator=torch.Generator().manual_seed(_SEED))
    basis = torch.linalg.qr(change @ random.to(change)).Q
    return Factors(basis, basis.T @ change)


def _trim(factors: Factors, tolerance: float) -> Factors:
    """Drop the directions that all together lie below the tolerance; `left` must have orthonormal columns."""
    wide = factors.right.double()
    squares, directions = torch.linalg.eigh(wide @ wide.T)  # ascending
    # On the CPU: CUDA refuses running sums where a trainer asks for deterministic algorithms.
    dropped = int((squares.clamp_min(0).cpu().cumsum(0) <= tolerance**2).sum())
    kept = directions[:, dropped:].to(factors.left)
    return Factors((factors.left @ kept).contiguous(), (kept.T @ factors.right).contiguous())
