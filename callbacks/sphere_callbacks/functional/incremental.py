"""The hyperspherical energy of a weight that changes by a low-rank update each time.

Shapes: n = d_out rows (neurons), d = d_in, k = rank of an update, b = block size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sphere_callbacks.functional._checks import as_matrix, exact_products
from sphere_callbacks.functional.energy import EnergyStatistics, PairSums, tile_buffer, upper_tiles

_PROBES = 16
_EXTRA = 8
_SAMPLES = 4  # columns looked at for each row that is taken


class LowRank(NamedTuple):
    """A matrix as a product, and what the product misses.

    Attributes:
        left: Tensor ``[n, k]``.
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
        The factors, with ``k = min(rank + 8, n, d)`` and orthonormal columns of the left one, and the residual, which
        tells whether the bound was true.

    Raises:
        ValueError: If the rank is below 1.

    Example:
        >>> found = low_rank_factors(torch.ones(4, 6), rank=1)
        >>> found.left.shape, bool(found.residual < 1e-5)
        (torch.Size([4, 4]), True)
    """
    _check_rank(rank)
    n, d = change.shape
    generator = torch.Generator().manual_seed(seed)
    probes = _normal(d, min(rank + _EXTRA, n, d), change, generator)
    with exact_products():
        left = torch.linalg.qr(change @ probes).Q  # [n, k]
        right = left.T @ change  # [k, d]
    return LowRank(left, right, _missed(change, left, right, generator))


def interpolated_factors(change: Tensor, rank: int, seed: int = 0) -> LowRank:
    """Factor a matrix whose rank is known to be small, with some of its own rows as the right factor.

    The rows and what the others are made of are told from a random sample of the columns, so only those and the
    product that finds the residual read the matrix: a fraction of the cost of :func:`low_rank_factors`. The price:
    rounding errors of the matrix come back two to five times larger, and a matrix whose rows live on few columns may
    slip through the sample; the residual tells.

    Args:
        change: Tensor of shape ``[n, d]``.
        rank: Upper bound of the rank; eight more rows are taken.
        seed: Seed of the sample.

    Returns:
        The factors, with ``k = min(rank + 8, n, d)``; the columns of the left one are not orthonormal.

    Raises:
        ValueError: If the rank is below 1.

    References:
        Halko, Martinsson, Tropp, "Finding structure with randomness", SIAM Review 2011, section 5.2.

    Example:
        >>> found = interpolated_factors(torch.ones(4, 6), rank=1)
        >>> torch.allclose(found.left @ found.right, torch.ones(4, 6))
        True
    """
    _check_rank(rank)
    n, d = change.shape
    k = min(rank + _EXTRA, n, d)
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randperm(d, generator=generator)[: _SAMPLES * k].to(change.device)
    sample = change.index_select(1, columns)
    with exact_products():
        sketch = sample @ _normal(len(columns), k, change, generator)  # [n, k]
    left, rows = _interpolation(sketch.double())
    left, right = left.to(change.dtype), change[rows]
    return LowRank(left, right, _missed(change, left, right, generator))


def _interpolation(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Write the rows of ``[n, k]`` as combinations ``[n, k]`` of ``k`` of them, chosen by Gaussian elimination."""
    n, k = matrix.shape
    eliminated, pivots, _ = torch.linalg.lu_factor_ex(matrix)  # a rank below k is no error here
    order = list(range(n))
    for row, pivot in enumerate(pivots.tolist()):  # counted from 1
        order[row], order[pivot - 1] = order[pivot - 1], order[row]
    lower = eliminated.tril(-1)
    lower.diagonal().fill_(1.0)
    mixed: Tensor = torch.linalg.solve_triangular(lower[:k], lower, upper=False, left=False, unitriangular=True)
    chosen = torch.tensor(order, device=matrix.device)
    found = torch.empty_like(mixed)
    found[chosen] = mixed
    return found, chosen[:k]


def _missed(change: Tensor, left: Tensor, right: Tensor, generator: torch.Generator) -> Tensor:
    """Estimate the Frobenius norm of ``change - left @ right``."""
    # E ||R g||^2 = ||R||^2 for normal g: a few of them tell the size of what is missed, without forming it.
    few = _normal(change.shape[1], _PROBES, change, generator)
    with exact_products():
        missed = change @ few - left @ (right @ few)  # [n, few]
    norm: Tensor = torch.linalg.vector_norm(missed / _PROBES**0.5)
    return norm


def _normal(rows: int, columns: int, like: Tensor, generator: torch.Generator) -> Tensor:
    # Drawn on the CPU, so that every device sees the same numbers.
    return torch.randn(rows, columns, generator=generator, dtype=like.dtype).to(like.device)


def _check_rank(rank: int) -> None:
    if rank < 1:
        raise ValueError(f"`rank` must be at least 1, got {rank}.")


def gram_matrix(weight: Tensor, dtype: torch.dtype, block_size: int = 512) -> Tensor:
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
    for i, j in upper_tiles(n, block_size):
        with exact_products():
            gram[i, j] = weight[i].to(dtype) @ weight[j].to(dtype).T
        if i != j:
            gram[j, i] = gram[i, j].T
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
        change = half @ left.T
    return gram + change + change.T


def row_products(weight: Tensor, right: Tensor, dtype: torch.dtype, block_size: int = 512) -> Tensor:
    """Multiply a weight by the transpose of a short matrix, with both rounded to a dtype in row blocks.

    Args:
        weight: Tensor of shape ``[n, d]``.
        right: Tensor of shape ``[k, d]``.
        dtype: The dtype in which products are formed.
        block_size: Rows that are rounded at a time.

    Returns:
        Tensor of shape ``[n, k]`` in the dtype of ``right``.

    Example:
        >>> row_products(torch.eye(2), torch.tensor([[1.0, 0.5]]), torch.bfloat16)
        tensor([[1.0000],
                [0.5000]])
    """
    found, rounded = right.new_empty(right.shape[0], weight.shape[0]), right.to(dtype)
    for top in range(0, weight.shape[0], block_size):
        with exact_products():
            found[:, top : top + block_size] = rounded @ weight[top : top + block_size].to(dtype).T
    return found.T


def energy_of_gram(gram: Tensor, s: float = 2.0, *, block_size: int = 512, eps: float = 1e-6) -> EnergyStatistics:
    """Compute the energy of rows from their Gram matrix.

    Args:
        gram: Tensor of shape ``[n, n]``; only the tiles that touch the upper triangle are read.
        s: Order of the energy.
        block_size: Side of a tile.
        eps: Smallest squared distance, see :func:`sphere_callbacks.functional.hyperspherical_energy`.

    Returns:
        The :class:`EnergyStatistics` of the rows.

    Example:
        >>> energy_of_gram(torch.diag(torch.tensor([1.0, 4.0, 9.0]))).per_pair
        tensor(0.5000, dtype=torch.float64)
    """
    return _pass_over(gram, lambda i, j: gram[i, j], s, block_size, eps)


def energy_of_changed_gram_(
    gram: Tensor, half: Tensor, left: Tensor, s: float = 2.0, *, block_size: int = 512, eps: float = 1e-6
) -> EnergyStatistics:
    r"""Add :math:`Q A^\top + A Q^\top` to a Gram matrix, in place, and compute the energy in the same pass.

    The products are formed in the dtype of the factors: they are small beside the matrix, so what rounding does to
    them is smaller still.

    Args:
        gram: Tensor of shape ``[n, n]``; changed in the tiles that touch the upper triangle, and in no other.
        half: ``Q`` of shape ``[n, k]``.
        left: ``A`` of shape ``[n, k]``.
        s: Order of the energy.
        block_size: Side of a tile.
        eps: Smallest squared distance.

    Returns:
        The :class:`EnergyStatistics` of the rows after the change.

    Example:
        >>> gram = torch.eye(2)
        >>> energy_of_changed_gram_(gram, torch.tensor([[0.5], [0.0]]), torch.tensor([[0.0], [1.0]])).per_pair
        tensor(1., dtype=torch.float64)
        >>> gram
        tensor([[1.0000, 0.5000],
                [0.5000, 1.0000]])
    """
    rows, columns = torch.cat([half, left], dim=1), torch.cat([left, half], dim=1)  # [n, 2 k]
    change = tile_buffer(rows, block_size)

    def added(i: slice, j: slice) -> Tensor:
        with exact_products():
            return gram[i, j].add_(torch.mm(rows[i], columns[j].T, out=change(i, j)))

    return _pass_over(gram, added, s, block_size, eps)


def _pass_over(
    gram: Tensor, tile_of: Callable[[slice, slice], Tensor], s: float, block_size: int, eps: float
) -> EnergyStatistics:
    """Visit each tile once: those on the diagonal first, since they hold the lengths of the rows."""
    tiles = list(upper_tiles(gram.shape[0], block_size))
    diagonal = {i.start: tile_of(i, j) for i, j in tiles if i == j}
    lengths = gram.diagonal().clamp(min=0).sqrt()
    inverse = 1 / torch.where(lengths == 0, 1.0, lengths)
    sums, buffer = PairSums(s, eps, gram.device), tile_buffer(gram, block_size)
    for i, j in tiles:
        products = diagonal[i.start] if i == j else tile_of(i, j)
        cosines = torch.mul(products, (-2 * inverse[i]).unsqueeze(1), out=buffer(i, j)).mul_(inverse[j])
        sums.add(cosines.add_(2.0), diagonal=i == j)
    return sums.statistics(lengths)


class EnergyTracker:
    """The energy of a weight that changes by updates whose low-rank factors are known.

    Holds the Gram matrix of the rows, ``n^2`` numbers in ``dtype``. An update of rank ``k`` costs ``2 n d k + 2 n^2 k``
    operations instead of the ``n^2 d`` of a fresh energy, and adds rounding errors; so the Gram matrix is formed anew
    every ``refresh_every`` updates and :attr:`drift` then says how far off the energy had come.

    Args:
        weight: Tensor of shape ``[n, d]``, floating.
        s: Order of the energy.
        refresh_every: Updates between exact computations.
        dtype: dtype of the Gram matrix.
        products: dtype in which products with the update are formed; that of the weight if left out. Half precision is
            up to twice as fast where the hardware has it. What it gets wrong is a share of the *change* of the Gram
            matrix, not of the matrix, so the drift stays small.
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
        >>> weight, left, right = torch.eye(4), torch.ones(4, 1), torch.ones(1, 4)
        >>> tracker = EnergyTracker(weight)
        >>> weight += left @ right
        >>> tracker.update(left, right, weight)
        >>> torch.allclose(tracker.statistics().energy, hyperspherical_energy(weight))
        True
    """

    def __init__(
        self,
        weight: Tensor,
        s: float = 2.0,
        *,
        refresh_every: int = 50,
        dtype: torch.dtype = torch.float64,
        products: torch.dtype | None = None,
        block_size: int = 512,
        eps: float = 1e-6,
    ) -> None:
        if refresh_every < 1:
            raise ValueError(f"`refresh_every` must be at least 1, got {refresh_every}.")
        self.s, self.block_size, self.eps = s, block_size, eps
        self.refresh_every = refresh_every
        self.products = products
        self.gram = gram_matrix(as_matrix(weight.detach()), dtype, block_size)
        self.drift = float("nan")
        self.exact = 1
        self._updates = 0
        self._statistics = energy_of_gram(self.gram, s, block_size=block_size, eps=eps)

    def statistics(self) -> EnergyStatistics:
        """Return the energy as it stands."""
        return self._statistics

    def update(self, left: Tensor, right: Tensor, weight: Tensor) -> None:
        """Follow to a weight that has changed by ``left @ right``.

        Args:
            left: Tensor of shape ``[n, k]``.
            right: Tensor of shape ``[k, d]``.
            weight: Tensor of shape ``[n, d]``, the weight *after* the update.
        """
        weight = as_matrix(weight.detach())
        products = self.products or weight.dtype
        known = row_products(weight, right, products, self.block_size)
        with exact_products():
            # Q of `updated_gram`, told from the weight after the update.
            half = known - left @ (right @ right.T) / 2  # [n, k]
        self._statistics = energy_of_changed_gram_(
            self.gram, half.to(products), left.to(products), self.s, block_size=self.block_size, eps=self.eps
        )
        self._updates += 1
        if self._updates % self.refresh_every == 0:
            followed = self._statistics.energy
            self.refresh(weight)
            exact = self._statistics.energy
            self.drift = float((followed - exact).abs() / exact.abs())

    def refresh(self, weight: Tensor) -> None:
        """Form the Gram matrix anew.

        Args:
            weight: Tensor of shape ``[n, d]``, the weight now.
        """
        self.gram = gram_matrix(as_matrix(weight.detach()), self.gram.dtype, self.block_size)
        self._statistics = energy_of_gram(self.gram, self.s, block_size=self.block_size, eps=self.eps)
        self.exact += 1


class EnergyFollower(EnergyTracker):
    """The energy of a weight that changes by updates of low rank whose factors are not known.

    Holds a copy of the weight besides the Gram matrix, and finds the factors in the difference. Takes the arguments of
    :class:`EnergyTracker`.

    Example:
        >>> from sphere_callbacks.functional import hyperspherical_energy
        >>> weight = torch.eye(4)
        >>> follower = EnergyFollower(weight)
        >>> follower.follow(weight + 1, rank=1)
        >>> torch.allclose(follower.statistics().energy, hyperspherical_energy(weight + 1))
        True
    """

    def __init__(self, weight: Tensor, s: float = 2.0, **options: Any) -> None:
        super().__init__(weight, s, **options)
        self._before = as_matrix(weight.detach()).clone(memory_format=torch.contiguous_format)

    def follow(self, weight: Tensor, rank: int) -> None:
        """Take over a weight that has changed by an update of at most the given rank.

        Factors are taken from a sample of the change, then, where these miss more of it than rounding explains, from
        the whole of it. Where those do too, the bound was not true and the Gram matrix is formed anew.

        Args:
            weight: Tensor of shape ``[n, d]``, the weight now.
            rank: Upper bound of the rank of the change.
        """
        weight = as_matrix(weight.detach())
        change = self._before.neg_().add_(weight)
        # The stored weight was rounded once, by at most half an eps of each entry; interpolation enlarges that.
        size = torch.linalg.matrix_norm(weight) + 10 * torch.linalg.matrix_norm(change)
        limit = 4 * torch.finfo(weight.dtype).eps * size
        for find in (interpolated_factors, low_rank_factors):
            found = find(change, rank)
            if bool(found.residual <= limit):
                self.update(found.left, found.right, weight)
                break
        else:
            self.refresh(weight)
        self._before.copy_(weight)
