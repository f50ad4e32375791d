"""Hyperspherical energy of the rows of a weight, exact, in tiles of bounded memory.

Shapes: n = d_out rows (neurons), d = d_in, b = block size.

References:
    - Liu et al., "SPHERE", ICLR 2026 (arXiv 2510.01172), Eq. 5 and 6.
    - Liu et al., "Learning towards Minimum Hyperspherical Energy", NeurIPS 2018 (arXiv 1805.09298).
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sphere_callbacks.functional._checks import as_matrix, exact_products


class EnergyStatistics(NamedTuple):
    """What one pass over all pairs of rows gives, as scalar tensors on the weight's device.

    Attributes:
        energy: Sum over ordered pairs of rows, float64.
        per_pair: ``energy`` divided by ``n (n - 1)``; 0 for a single row.
        duplicate_pairs: Unordered pairs whose squared distance was below ``eps`` and therefore clamped.
        zero_rows: Rows without a direction.
        non_finite_rows: Rows with a NaN or an infinity.
    """

    energy: Tensor
    per_pair: Tensor
    duplicate_pairs: Tensor
    zero_rows: Tensor
    non_finite_rows: Tensor


def unit_rows(weight: Tensor) -> Tensor:
    """Scale each row to length one; a zero row stays zero, a row with NaN or infinity becomes NaN.

    Args:
        weight: Tensor of shape ``[n, d]``, floating.

    Returns:
        Tensor of shape ``[n, d]`` without history, float64 for a float64 weight and float32 otherwise.

    Example:
        >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    rows = as_matrix(weight.detach())
    # The largest entry goes first: squares of entries below 1e-19 would vanish in float32. One new matrix serves all
    # steps, since the system takes longer to hand out its memory than they take together.
    unit = rows.abs()
    largest = unit.amax(dim=1, keepdim=True)
    torch.div(rows, torch.where(largest == 0, 1.0, largest), out=unit)
    lengths = torch.linalg.vector_norm(unit, dim=1, keepdim=True)
    return unit.div_(torch.where(lengths == 0, 1.0, lengths))


def upper_tiles(n: int, block_size: int) -> Iterator[tuple[slice, slice]]:
    """Walk over the tiles of an ``n x n`` matrix on and above the diagonal.

    Example:
        >>> [(i.start, j.start) for i, j in upper_tiles(5, 3)]
        [(0, 0), (0, 3), (3, 3)]
    """
    for top in range(0, n, block_size):
        for left in range(top, n, block_size):
            yield slice(top, min(top + block_size, n)), slice(left, min(left + block_size, n))


def tile_buffer(matrix: Tensor, block_size: int) -> Callable[[slice, slice], Tensor]:
    """Reserve one tile's memory, to be written again and again.

    Args:
        matrix: Of shape ``[n, ...]``; says the device and the dtype.
        block_size: Side of a tile.

    Returns:
        The function that views the memory as the tile of some rows and columns, overwriting what it held.
    """
    side = min(block_size, matrix.shape[0])
    memory = matrix.new_empty(side * side)

    def view(i: slice, j: slice) -> Tensor:
        shape = i.stop - i.start, j.stop - j.start
        return memory[: shape[0] * shape[1]].view(shape)

    return view


class PairSums:
    """Sums over pairs of rows, from the tiles of their squared distances.

    Args:
        s: Order of the Riesz kernel.
        eps: Smallest squared distance.
        device: Where the tiles are.
    """

    def __init__(self, s: float, eps: float, device: torch.device) -> None:
        self.s, self.eps = s, eps
        self.energy = torch.zeros((), dtype=torch.float64, device=device)
        self.duplicate_pairs = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, squared: Tensor, diagonal: bool) -> None:
        """Add a tile.

        Args:
            squared: Squared distances of shape ``[<= b, <= b]``; overwritten.
            diagonal: Whether the tile lies on the diagonal.
        """
        if diagonal:
            squared.fill_diagonal_(2.0)  # any regular distance; the pair (i, i) is taken out below
        pairs = (squared < self.eps).sum()
        kernel = riesz_kernel_(squared.clamp_(min=self.eps), self.s)
        if diagonal:
            kernel.fill_diagonal_(0.0)
        # A tile above the diagonal stands for its mirror image too; a diagonal tile already holds both orders.
        self.energy += kernel.sum(dim=1).double().sum() * (1 if diagonal else 2)
        self.duplicate_pairs += pairs // 2 if diagonal else pairs

    def statistics(self, lengths: Tensor) -> EnergyStatistics:
        """Tell what has been summed, of rows that had the given lengths ``[n]``."""
        n = len(lengths)
        return EnergyStatistics(
            energy=self.energy,
            per_pair=self.energy / max(n * (n - 1), 1),
            duplicate_pairs=self.duplicate_pairs,
            zero_rows=(lengths == 0).sum(),
            non_finite_rows=(~lengths.isfinite()).sum(),
        )


def riesz_kernel_(squared_distances: Tensor, s: float) -> Tensor:
    """Energy of each pair, ``t^-s`` or ``-log t`` for ``s = 0``, from squared distances ``t^2``, in place.

    Example:
        >>> riesz_kernel_(torch.tensor([4.0]), s=2.0), riesz_kernel_(torch.tensor([1.0]), s=0.0)
        (tensor([0.2500]), tensor([-0.]))
    """
    if s == 0:
        return squared_distances.log_().mul_(-0.5)
    if s == 2:
        return squared_distances.reciprocal_()
    return squared_distances.pow_(-0.5 * s)


def check_energy(s: float, block_size: int, eps: float) -> None:
    """Refuse options that are out of range, with a ValueError."""
    if not s >= 0:
        raise ValueError(
            f"`s` must be at least 0, got {s}. Use 2 for the paper's energy and 0 for the logarithmic one."
        )
    if block_size < 1:
        raise ValueError(f"`block_size` must be at least 1, got {block_size}.")
    if not eps > 0:
        raise ValueError(f"`eps` must be above 0, got {eps}. It bounds the energy of two rows with the same direction.")


def energy_statistics(weight: Tensor, s: float = 2.0, *, block_size: int = 512, eps: float = 1e-6) -> EnergyStatistics:
    """Compute the energy and count the rows that have no well defined place on the sphere, in one pass.

    Args:
        weight: Tensor of shape ``[n, d]``, floating.
        s: Order of the Riesz kernel, see :func:`hyperspherical_energy`.
        block_size: Side of a tile; temporary memory is a tile of ``block_size ** 2`` numbers.
        eps: Smallest squared distance, see :func:`hyperspherical_energy`.

    Returns:
        The :class:`EnergyStatistics` of the rows.

    Raises:
        TypeError: If the weight is not floating.
        ValueError: If the weight is not a matrix, or an option is out of range.

    Example:
        >>> found = energy_statistics(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]]))
        >>> int(found.duplicate_pairs), int(found.zero_rows), int(found.non_finite_rows)
        (1, 1, 0)
    """
    check_energy(s, block_size, eps)
    unit = unit_rows(weight.detach())
    n, lengths = unit.shape[0], torch.linalg.vector_norm(unit, dim=1)  # 1, or 0, or NaN
    sums, tile = PairSums(s, eps, unit.device), tile_buffer(unit, block_size)
    for i, j in upper_tiles(n, block_size):
        with exact_products():
            cosines = torch.mm(unit[i], unit[j].T, out=tile(i, j))
        sums.add(cosines.mul_(-2.0).add_(2.0), diagonal=i == j)
    return sums.statistics(lengths)


def hyperspherical_energy(
    weight: Tensor, s: float = 2.0, *, block_size: int = 512, per_pair: bool = False, eps: float = 1e-6
) -> Tensor:
    r"""Compute the Riesz energy of the directions of the rows.

    .. math:: \sum_{i \ne j} \lVert \hat w_i - \hat w_j \rVert^{-s}, \qquad \hat w_i = w_i / \lVert w_i \rVert

    over ordered pairs; ``s = 0`` stands for :math:`-\log \lVert \hat w_i - \hat w_j \rVert`. Low energy means rows that
    are spread evenly. Nothing is sampled: all ``n (n - 1)`` pairs are visited, at ``n^2 d`` flops, since only half the
    products are formed. Products are formed in the dtype of the weight (never in TF32), a row of a tile is summed in
    it, and everything above in float64.

    Args:
        weight: Tensor of shape ``[n, d]``. Half precision is computed in float32.
        s: Order of the kernel, at least 0.
        block_size: Side of a tile; temporary memory is a tile of ``block_size ** 2`` numbers.
        per_pair: Divide by the number of ordered pairs, which makes weights of different height comparable.
        eps: Smallest squared distance. Rows with the same direction count as this far apart, so a pair of duplicates
            adds ``2 * eps ** (-s / 2)`` and not infinity.

    Returns:
        A float64 scalar on the weight's device, without history: it measures, and is no term of a loss. A single row
        has energy 0. A zero row has no direction: it counts as orthogonal to every other row. A NaN or an infinity
        anywhere in two or more rows gives NaN.

    Raises:
        TypeError: If the weight is not floating.
        ValueError: If the weight is not a matrix, or an option is out of range.

    Example:
        >>> hyperspherical_energy(torch.eye(4))  # 12 ordered pairs at squared distance 2
        tensor(6., dtype=torch.float64)
        >>> hyperspherical_energy(torch.eye(4), per_pair=True)
        tensor(0.5000, dtype=torch.float64)
    """
    found = energy_statistics(weight, s, block_size=block_size, eps=eps)
    return found.per_pair if per_pair else found.energy
