r"""Both sides of the theorem that ties energy to the size of an update.

Shapes: n = d_out rows (neurons), d = d_in.

The theorem says :math:`\lVert \Delta W \rVert^2 \ge (\Delta HE / K)^2`. It holds to first order in the update and is
logged as a monitor, not sold as a guarantee.

References:
    - Liu et al., "SPHERE", ICLR 2026 (arXiv 2510.01172), Theorem 1.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sphere_callbacks.functional._checks import as_matrix, exact_products
from sphere_callbacks.functional.energy import check_energy, unit_rows


class EnergyBound(NamedTuple):
    """What a change of energy says about the update behind it, as float64 scalars.

    Attributes:
        constant: ``K`` of the theorem.
        lower: ``(energy_change / K)^2``, which ``||update||^2`` should not fall below.
    """

    constant: Tensor
    lower: Tensor


def energy_constant(
    weight: Tensor,
    s: float = 2.0,
    *,
    rows: Literal["raw", "unit"] = "raw",
    block_size: int = 512,
    eps: float = 1e-6,
) -> Tensor:
    r"""Compute the constant ``K`` that bounds how fast the energy changes with the weight.

    .. math:: K = 2 s \Bigl( \sum_k \bigl( \sum_{j \ne k} \lVert w_k - w_j \rVert^{-(s + 1)} \bigr)^2 \Bigr)^{1/2}

    which is :math:`4 (\dots \lVert w_k - w_j \rVert^{-3} \dots)^{1/2}` for the paper's ``s = 2``. For ``s = 0`` the
    factor is 2.

    Args:
        weight: Tensor of shape ``[n, d]``, floating.
        s: Order of the energy, at least 0.
        rows: ``"raw"`` takes the rows as they are, which is the theorem's text; it bounds the energy of *unnormalised*
            rows. ``"unit"`` takes unit rows and divides each inner sum by the length of its row: this one bounds the
            hyperspherical energy itself, since turning a long row takes a larger update.
        block_size: Side of a tile.
        eps: Smallest squared distance, relative to the mean squared length of the rows.

    Returns:
        A float64 scalar; 0 for a single row. With ``"unit"``, a zero row adds nothing of its own.

    Raises:
        TypeError: If the weight is not floating.
        ValueError: If it is not a matrix, ``rows`` is unknown, or an option is out of range.

    Example:
        >>> round(float(energy_constant(torch.eye(2), rows="unit")), 6)  # 4 * sqrt(2 * (2 ** -1.5) ** 2)
        2.0
    """
    if rows not in ("raw", "unit"):
        raise ValueError(f"`rows` must be 'raw' or 'unit', got {rows!r}.")
    check_energy(s, block_size, eps)
    raw = as_matrix(weight.detach())
    points = unit_rows(raw) if rows == "unit" else raw
    sums = _inverse_distances(points, s + 1, block_size, eps)
    if rows == "unit":
        lengths = torch.linalg.vector_norm(raw, dim=1).double()
        sums = torch.where(lengths == 0, 0.0, sums / lengths)
    total: Tensor = torch.linalg.vector_norm(sums)
    return (2 * s or 2.0) * total


def _inverse_distances(points: Tensor, power: float, block_size: int, eps: float) -> Tensor:
    """Sum ``distance ** -power`` from each row to all others, in tiles of the upper triangle; ``[n]``, float64."""
    n = points.shape[0]
    squared_lengths = points.square().sum(dim=1)
    smallest = eps * torch.where(squared_lengths.any(), squared_lengths.mean(), 1.0)
    sums = torch.zeros(n, dtype=torch.float64, device=points.device)
    for top in range(0, n, block_size):
        for left in range(top, n, block_size):
            i, j = slice(top, top + block_size), slice(left, left + block_size)
            with exact_products():
                products = points[i] @ points[j].T  # [<= b, <= b]
            total = squared_lengths[i].unsqueeze(1) + squared_lengths[j]
            inverse = torch.maximum(total - 2 * products, smallest).pow(-power / 2)
            if top == left:
                inverse.fill_diagonal_(0.0)
            else:
                sums[j] += inverse.sum(dim=0)
            sums[i] += inverse.sum(dim=1)
    return sums


def perturbation_bound(
    weight: Tensor,
    energy_change: Tensor | float,
    s: float = 2.0,
    *,
    rows: Literal["raw", "unit"] = "raw",
    block_size: int = 512,
) -> EnergyBound:
    r"""Compute what the theorem says an update must at least have been for the energy to change as it did.

    Args:
        weight: Tensor of shape ``[n, d]``, the weight before the update.
        energy_change: Energy after minus energy before.
        s: Order of the energy, at least 0.
        rows: See :func:`energy_constant`.
        block_size: Side of a tile.

    Returns:
        The constant and the lower bound on :math:`\lVert \Delta W \rVert_F^2`; a bound of 0 where the constant is 0.

    Raises:
        TypeError: If the weight is not floating.
        ValueError: If it is not a matrix, ``rows`` is unknown, or an option is out of range.

    Example:
        >>> round(float(perturbation_bound(torch.eye(2), 0.02, rows="unit").lower), 8)
        0.0001
    """
    constant = energy_constant(weight, s, rows=rows, block_size=block_size)
    change = torch.as_tensor(energy_change, dtype=torch.float64, device=constant.device)
    return EnergyBound(constant, torch.where(constant == 0, 0.0, (change / constant).square()))


def output_perturbation(change: Tensor, second_moment: Tensor | None = None) -> Tensor:
    r"""Measure how far an update moves the outputs of a layer, :math:`\mathrm{tr}(\Delta C \Delta^\top)`.

    Args:
        change: Tensor of shape ``[n, d]``, floating.
        second_moment: ``C``, the mean of ``x x^T`` over inputs, of shape ``[d, d]``; ``None`` stands for orthonormal
            inputs and gives the squared Frobenius norm.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If the change is not floating.
        ValueError: If the shapes do not meet.

    Example:
        >>> output_perturbation(torch.tensor([[3.0, 4.0]]))
        tensor(25., dtype=torch.float64)
        >>> output_perturbation(torch.tensor([[3.0, 4.0]]), torch.diag(torch.tensor([1.0, 0.0])))
        tensor(9., dtype=torch.float64)
    """
    matrix = as_matrix(change.detach(), "change")
    if second_moment is None:
        return matrix.square().sum(dim=1).double().sum()
    if second_moment.shape != (matrix.shape[1], matrix.shape[1]):
        raise ValueError(
            f"`second_moment` must have shape {[matrix.shape[1]] * 2} to fit `change` {list(matrix.shape)}, "
            f"got {list(second_moment.shape)}."
        )
    with exact_products():
        moved = matrix @ second_moment.to(matrix.dtype)
    return (moved * matrix).sum(dim=1).double().sum()
