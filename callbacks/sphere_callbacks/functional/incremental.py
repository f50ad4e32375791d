"""The hyperspherical energy of a weight that changes by a low-rank update each time.

Shapes: n = d_out rows (neurons), d = d_in, k = rank of an update, b = block size.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sphere_callbacks.functional._checks import as_matrix, exact_products
from sphere_callbacks.functional.energy import EnergyStatistics, riesz_kernel

_PROBES = 16


class LowRank(NamedTuple):
    """A matrix as a product, and what the product misses.

    Attributes:
        left: Orthonormal columns ``[n, k]``.
        right: Tensor ``[k, d]``.
        residual: Frobenius norm of the difference to the matrix, estimated from its products with 16 random vectors;
            within a third of the true one, or exactly 0 with it.
    """

    left: Tensor
    right: Tensor
    residual: Tensor


def low_rank_factors(change: Tensor, rank: int, seed: int = 0) -> LowRank:
    """Factor a matrix whose rank is known to be small, through its product with a few random vectors.

    Args:
        change: Tensor of shape ``[n, d]``.
        rank: Upper bound of the rank; eight more directions are tried.
        seed: Seed of the random vectors.

    Returns:
        The factors, with ``k = min(rank + 8, n, d)``, and the residual, which tells whether the bound was true.

    Raises:
        ValueError: If the rank is below 1.

    Example:
        >>> found = low_rank_factors(torch.ones(4, 6), rank=1)
        >>> found.left.shape, bool(found.residual < 1e-5)
        (torch.Size([4, 4]), True)
    """
    if rank < 1:
        raise ValueError(f"`rank` must be at least 1, got {rank}.")
    n, d = change.shape
    generator = torch.Generator().manual_seed(seed)
    probes = torch.randn(d, min(rank + 8, n, d), generator=generator, dtype=change.dtype).to(change.device)
    with exact_products():
        left = torch.linalg.qr(change @ probes).Q  # [n, k]
        right = left.T @ change  # [k, d]
        # E ||R g||^2 = ||R||^2 for normal g: a few of them tell the size of what is missed, without forming it.
        few = torch.randn(d, _PROBES, generator=generator, dtype=change.dtype).to(change.device)
        residual = torch.linalg.matrix_norm(change @ few - left @ (right @ few)) / _PROBES**0.5
    return LowRank(left, right, residual)


def gram_matrix(weight: Tensor, dtype: torch.dtype, block_size: int = 1024) -> Tensor:
    """Compute the products of all pairs of rows in a given dtype, in tiles.

    Args:
        weight: Tensor of shape ``[n, d]``.
        dtype: The dtype in which products are formed.
        block_size: Side of a tile.

    Returns:
        Symmetric tensor of shape ``[n, n]``.

    Example:
        >>> gram_matrix(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.float64)
        tensor([[25.,  3.],
                [ 3.,  1.]], dtype=torch.float64)
    """
    n = weight.shape[0]
    gram = weight.new_empty(n, n, dtype=dtype)
    for top in range(0, n, block_size):
        for left in range(top, n, block_size):
            i, j = slice(top, top + block_size), slice(left, left + block_size)
            with exact_products():
                tile = weight[i].to(dtype) @ weight[j].to(dtype).T
            gram[i, j] = tile
            gram[j, i] = tile.T
    return gram


def updated_gram(gram: Tensor, weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    r"""Return the Gram matrix of ``weight + left @ right``, given that of ``weight``.

    .. math:: G' = G + Q A^\top + A Q^\top, \qquad Q = W B^\top + \tfrac12 A (B B^\top)

    Args:
        gram: Tensor of shape ``[n, n]``.
        weight: Tensor of shape ``[n, d]``, before the update.
        left: ``A`` of shape ``[n, k]``.
        right: ``B`` of shape ``[k, d]``.

    Returns:
        Tensor of shape ``[n, n]`` in the dtype of ``gram``, at ``2 n d k + 2 n^2 k`` flops and little more.

    Example:
        >>> weight, A, B = torch.eye(2), torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0, 2.0]])
        >>> updated_gram(weight @ weight.T, weight, A, B)  # rows become (1, 2) and (0, 1)
        tensor([[5., 2.],
                [2., 1.]])
    """
    with exact_products():
        half = weight @ right.T + left @ (right @ right.T) / 2  # [n, k]
    return add_symmetric(gram.clone(), half, left)


def add_symmetric(gram: Tensor, half: Tensor, left: Tensor, block_size: int = 1024) -> Tensor:
    r"""Add :math:`Q A^\top + A Q^\top` to a symmetric matrix, in place and in tiles of the upper triangle.

    The products are formed in the dtype of the factors: they are small beside the matrix, so what rounding does to
    them is smaller still.

    Args:
        gram: Tensor of shape ``[n, n]``; changed.
        half: ``Q`` of shape ``[n, k]``.
        left: ``A`` of shape ``[n, k]``.
        block_size: Side of a tile.

    Returns:
        ``gram``.

    Example:
        >>> add_symmetric(torch.zeros(2, 2), torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [0.0]]))
        tensor([[2., 2.],
                [2., 0.]])
    """
    n = gram.shape[0]
    rows, columns = torch.cat([half, left], dim=1), torch.cat([left, half], dim=1)  # [n, 2 k]
    for top in range(0, n, block_size):
        for start in range(top, n, block_size):
            i, j = slice(top, top + block_size), slice(start, start + block_size)
            with exact_products():
                gram[i, j] += rows[i] @ columns[j].T
            if start > top:
                gram[j, i] = gram[i, j].T
    return gram


def energy_of_gram(gram: Tensor, s: float = 2.0, *, block_size: int = 1024, eps: float = 1e-6) -> EnergyStatistics:
    """Compute the energy of rows from their Gram matrix.

    Args:
        gram: Tensor of shape ``[n, n]``.
        s: Order of the energy.
        block_size: Side of a tile.
        eps: Smallest squared distance, see :func:`sphere_callbacks.functional.hyperspherical_energy`.

    Returns:
        The :class:`EnergyStatistics` of the rows.

    Example:
        >>> energy_of_gram(torch.diag(torch.tensor([1.0, 4.0, 9.0]))).per_pair
        tensor(0.5000, dtype=torch.float64)
    """
    n, lengths = gram.shape[0], gram.diagonal().clamp(min=0).sqrt()
    inverse = 1 / torch.where(lengths == 0, 1.0, lengths)
    energy = torch.zeros((), dtype=torch.float64, device=gram.device)
    duplicates = torch.zeros((), dtype=torch.int64, device=gram.device)
    for top in range(0, n, block_size):
        for left in range(top, n, block_size):
            i, j = slice(top, top + block_size), slice(left, left + block_size)
            squared = (gram[i, j] * (-2 * inverse[i]).unsqueeze(1)).mul_(inverse[j]).add_(2.0)
            if top == left:
                squared.fill_diagonal_(2.0)
            pairs = (squared < eps).sum()
            kernel = riesz_kernel(squared.clamp_(min=eps), s)
            if top == left:
                kernel.fill_diagonal_(0.0)
            # As in `energy_statistics`: a tile above the diagonal stands for its mirror image too.
            energy += kernel.sum(dim=1).double().sum() * (1 if top == left else 2)
            duplicates += pairs // 2 if top == left else pairs
    return EnergyStatistics(
        energy=energy,
        per_pair=energy / max(n * (n - 1), 1),
        duplicate_pairs=duplicates,
        zero_rows=(lengths == 0).sum(),
        non_finite_rows=(~lengths.isfinite()).sum(),
    )


class EnergyTracker:
    """The energy of a weight that is followed through low-rank updates.

    Holds the Gram matrix of the rows, ``n^2`` numbers in ``dtype``, and a copy of the weight. An update of rank ``k``
    costs ``O(n^2 k + n d k)`` instead of the ``O(n^2 d)`` of a fresh energy, and adds rounding errors; so the Gram
    matrix is formed anew every ``refresh_every`` updates and :attr:`drift` then says how far off the energy had come.

    Args:
        weight: Tensor of shape ``[n, d]``, floating.
        s: Order of the energy.
        refresh_every: Updates between exact computations.
        dtype: dtype of the Gram matrix. Products with the update are formed in the dtype of the weight.
        block_size: Side of a tile.
        eps: Smallest squared distance.

    Attributes:
        drift: Relative error of the energy found at the last refresh; NaN before the first.
        exact: How often the Gram matrix was formed anew, the start included.

    Raises:
        TypeError: If the weight is not floating.
        ValueError: If it is not a matrix or ``refresh_every`` is below 1.

    Example:
        >>> from sphere_callbacks.functional import hyperspherical_energy
        >>> weight = torch.eye(4)
        >>> tracker = EnergyTracker(weight)
        >>> tracker.update(torch.ones(4, 1), torch.ones(1, 4))
        >>> torch.allclose(tracker.statistics().energy, hyperspherical_energy(weight + 1))
        True
    """

    def __init__(
        self,
        weight: Tensor,
        s: float = 2.0,
        *,
        refresh_every: int = 50,
        dtype: torch.dtype = torch.float64,
        block_size: int = 1024,
        eps: float = 1e-6,
    ) -> None:
        if refresh_every < 1:
            raise ValueError(f"`refresh_every` must be at least 1, got {refresh_every}.")
        self.s, self.block_size, self.eps = s, block_size, eps
        self.refresh_every = refresh_every
        self.weight = as_matrix(weight.detach()).clone()
        self.gram = gram_matrix(self.weight, dtype, block_size)
        self.drift = float("nan")
        self.exact = 1
        self._updates = 0

    def statistics(self) -> EnergyStatistics:
        """Return the energy as it stands."""
        return energy_of_gram(self.gram, self.s, block_size=self.block_size, eps=self.eps)

    def update(self, left: Tensor, right: Tensor, weight: Tensor | None = None) -> None:
        """Add ``left @ right`` to the weight.

        Args:
            left: Tensor of shape ``[n, k]``.
            right: Tensor of shape ``[k, d]``.
            weight: The weight after the update, of shape ``[n, d]``, from whoever has made it; it is copied. Computed
                if left out, which doubles the cost.
        """
        with exact_products():
            weight = self.weight.addmm_(left, right) if weight is None else self.weight.copy_(weight.detach())
        self._advance(weight, left, right)

    def follow(self, weight: Tensor, rank: int) -> None:
        """Take over a weight that has changed by an update of at most the given rank.

        The factors are found from the change itself. Where they miss more of it than rounding explains, the bound was
        not true and the Gram matrix is formed anew.

        Args:
            weight: Tensor of shape ``[n, d]``, the weight now.
            rank: Upper bound of the rank of the change.
        """
        weight = as_matrix(weight.detach())
        change = weight - self.weight
        found = low_rank_factors(change, rank)
        # The stored weight was rounded once, by at most half an eps of each entry.
        size = torch.linalg.matrix_norm(weight) + 10 * torch.linalg.matrix_norm(change)
        if bool(found.residual <= 1.5 * torch.finfo(weight.dtype).eps * size):
            self._advance(self.weight.copy_(weight), found.left, found.right)
        else:
            self._replace(self.weight.copy_(weight))

    def _advance(self, weight: Tensor, left: Tensor, right: Tensor) -> None:
        """Follow to a weight that has changed by ``left @ right``."""
        with exact_products():
            # Q of `updated_gram`, told from the weight after the update.
            half = weight @ right.T - left @ (right @ right.T) / 2  # [n, k]
        add_symmetric(self.gram, half, left, self.block_size)
        self.weight = weight
        self._updates += 1
        if self._updates % self.refresh_every == 0:
            followed = self.statistics().energy
            self._replace(weight)
            exact = self.statistics().energy
            self.drift = float((followed - exact).abs() / exact.abs())

    def _replace(self, weight: Tensor) -> None:
        self.weight = weight
        self.gram = gram_matrix(weight, self.gram.dtype, self.block_size)
        self.exact += 1
