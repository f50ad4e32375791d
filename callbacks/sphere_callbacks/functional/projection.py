"""Principal directions of a weight and the projections that keep an update out of them.

Shapes: n = d_out rows (neurons), d = d_in, r directions, k output directions.

References:
    - Liu et al., "SPHERE", ICLR 2026 (arXiv 2510.01172), Sec. 4.
"""

import torch
from torch import Tensor

from sphere_callbacks.functional._checks import as_matrix, check_floating, exact_products


def _check_ratio(cumulative_ratio: float) -> None:
    if not 0 <= cumulative_ratio < 1:
        raise ValueError(
            f"`cumulative_ratio` must lie in [0, 1), got {cumulative_ratio}. 0 gives the single leading direction; a "
            "share of 1 would take every direction."
        )


def _check_strength(strength: float) -> None:
    if not 0 <= strength <= 1:
        raise ValueError(
            f"`strength` must lie in [0, 1], got {strength}. Use 0 to leave updates alone and 1 for a hard projection."
        )


def normalised_rows(weight: Tensor) -> Tensor:
    """Divide each row by its norm plus 1e-8, as the authors of SPHERE do, so that a zero row stays zero.

    Example:
        >>> normalised_rows(torch.tensor([[0.0, 0.0], [0.0, 5.0]]))
        tensor([[0., 0.],
                [0., 1.]])
    """
    rows = as_matrix(weight.detach())
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / (lengths + 1e-8)


def spectrum(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Decompose the second moment of the row-normalised weight through the smaller of its two Gram matrices.

    Args:
        weight: Tensor of shape ``[n, d]``, floating and finite.

    Returns:
        The eigenvalues, largest first, not below zero, of shape ``[min(n, d)]``, and the eigenvectors of the smaller
        Gram matrix in columns: of ``rows @ rows.T / n`` when ``n < d``, else of ``rows.T @ rows / n``.

    Raises:
        TypeError: If the weight is not floating.
        ValueError: If it is not a matrix or has a NaN or an infinity.

    Example:
        >>> spectrum(torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0]]))[0]
        tensor([0.5000, 0.5000])
    """
    rows = normalised_rows(weight)
    n, d = rows.shape
    with exact_products():
        gram = (rows @ rows.T if n < d else rows.T @ rows) / n
    if not gram.isfinite().all():
        raise ValueError(
            f"`weight` [{n}, {d}] has a NaN or an infinity, so its principal directions are undefined. Look for the "
            "update that wrote it."
        )
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    return values.flip(0).clamp(min=0), vectors.flip(1)


def count_directions(values: Tensor, cumulative_ratio: float, numerical_rank: int) -> int:
    """Count the leading eigenvalues whose share of the total first exceeds a ratio.

    Args:
        values: Eigenvalues, largest first, of shape ``[m]``.
        cumulative_ratio: The share to exceed strictly, in ``[0, 1)``.
        numerical_rank: Upper limit of the count.

    Returns:
        The smallest count whose share exceeds the ratio, at most ``numerical_rank``.

    Example:
        >>> count_directions(torch.tensor([2.0, 1.0, 1.0]), 0.5, 3)  # a share of exactly 0.5 is not enough
        2
    """
    # On the CPU: CUDA refuses running sums where a trainer asks for deterministic algorithms.
    values = values.double().cpu()
    shares = values.cumsum(0) / values.sum()
    return min(int((shares <= cumulative_ratio).sum()) + 1, numerical_rank)


def _orthonormal(columns: Tensor) -> Tensor:
    """Return the columns unchanged if they are orthonormal to rounding, else their QR factor."""
    with exact_products():
        error = columns.T @ columns - torch.eye(columns.shape[1], dtype=columns.dtype, device=columns.device)
    tolerance = 16 * torch.finfo(columns.dtype).eps
    return columns if error.numel() == 0 or error.abs().max() <= tolerance else torch.linalg.qr(columns).Q


def principal_directions(weight: Tensor, cumulative_ratio: float) -> Tensor:
    r"""Find the input directions that the rows of a weight use most.

    These are the leading eigenvectors of :math:`C = \hat A^\top \hat A / n`, the second moment of the row-normalised
    weight. The smaller Gram matrix is decomposed, ``min(n, d)`` squared; the ``d x d`` projector is never formed.

    Args:
        weight: Tensor of shape ``[n, d]``. Half precision is computed in float32.
        cumulative_ratio: Share of the eigenvalue sum, in ``[0, 1)``, that the directions must *exceed*; the smallest
            such count is taken. 0 gives the one leading direction.

    Returns:
        Orthonormal columns of shape ``[d, r]`` with ``1 <= r <= rank``, largest eigenvalue first; ``[d, 0]`` for a
        weight of zeros.

    Raises:
        TypeError: If the weight is not floating.
        ValueError: If the ratio is outside ``[0, 1)``, or the weight is not a finite matrix.

    Example:
        >>> weight = torch.tensor([[1.0, 0.0, 0.0], [4.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> principal_directions(weight, cumulative_ratio=0.5).abs()
        tensor([[1.],
                [0.],
                [0.]])
    """
    return leading_directions(weight, cumulative_ratio)[0]


def leading_directions(weight: Tensor, cumulative_ratio: float) -> tuple[Tensor, Tensor]:
    """Find the principal directions and the whole spectrum they were chosen from.

    Args:
        weight: Tensor of shape ``[n, d]``, floating and finite.
        cumulative_ratio: See :func:`principal_directions`.

    Returns:
        The directions ``[d, r]`` and all eigenvalues ``[min(n, d)]``, largest first.

    Raises:
        TypeError: If the weight is not floating.
        ValueError: If the ratio is outside ``[0, 1)``, or the weight is not a finite matrix.

    Example:
        >>> directions, values = leading_directions(torch.eye(4), 0.5)
        >>> directions.shape, values
        (torch.Size([4, 3]), tensor([0.2500, 0.2500, 0.2500, 0.2500]))
    """
    _check_ratio(cumulative_ratio)
    values, vectors = spectrum(weight)
    n, d = weight.shape
    threshold = values[0] * max(n, d) * torch.finfo(values.dtype).eps
    r = count_directions(values, cumulative_ratio, int((values > threshold).sum()))
    if n >= d:
        return vectors[:, :r].contiguous(), values
    with exact_products():
        columns = normalised_rows(weight).T @ vectors[:, :r]  # [d, r], each of length sqrt(n * eigenvalue)
    return _orthonormal(columns / torch.linalg.vector_norm(columns, dim=0, keepdim=True)), values


def reading_from(update: Tensor, directions: Tensor) -> Tensor:
    r"""Give the part of an update that reads from the given input directions, in their coordinates: :math:`\Delta U`.

    Args:
        update: Tensor of shape ``[n, d]``, floating.
        directions: Orthonormal columns of shape ``[d, r]``.

    Returns:
        Tensor of shape ``[n, r]`` in the wider of the two dtypes.

    Raises:
        ValueError: If the shapes do not meet.

    Example:
        >>> reading_from(torch.tensor([[4.0, 2.0]]), torch.tensor([[1.0], [0.0]]))
        tensor([[4.]])
    """
    _check_side(update, directions, dim=1)
    dtype = torch.promote_types(update.dtype, directions.dtype)
    with exact_products():
        return update.to(dtype) @ directions.to(dtype)


def project_out(update: Tensor, directions: Tensor, strength: float, inside: Tensor | None = None) -> Tensor:
    r"""Weaken the part of an update that reads from the given input directions.

    .. math:: \Delta' = \Delta - \alpha (\Delta U) U^\top, \qquad
        \lVert \Delta' \rVert^2 = \lVert \Delta \rVert^2 - (2 \alpha - \alpha^2) \lVert \Delta U \rVert^2

    Args:
        update: Tensor of shape ``[n, d]``, floating.
        directions: Orthonormal columns of shape ``[d, r]``.
        strength: ``alpha`` in ``[0, 1]``: 0 returns the update itself, 1 removes the part completely.
        inside: What :func:`reading_from` says of both, where it is known already.

    Returns:
        Tensor of shape ``[n, d]`` in the dtype of ``update``; computed in the wider of the two dtypes.

    Raises:
        TypeError: If the update is not floating.
        ValueError: If the strength is outside ``[0, 1]`` or the shapes do not meet.

    Example:
        >>> project_out(torch.tensor([[4.0, 2.0]]), torch.tensor([[1.0], [0.0]]), strength=0.5)
        tensor([[2., 2.]])
    """
    _check_strength(strength)
    check_floating(update)
    _check_side(update, directions, dim=1)
    if strength == 0:
        return update
    inside = reading_from(update, directions) if inside is None else inside
    with exact_products():
        removed = inside @ directions.to(inside.dtype).T  # [n, d]
    return (update.to(inside.dtype) - strength * removed).to(update.dtype)


def project_out_both(update: Tensor, input_directions: Tensor, output_directions: Tensor) -> Tensor:
    r"""Cut an update off from the given input directions and from the given output directions.

    .. math:: \Delta' = (I - V V^\top) \, \Delta \, (I - U U^\top)

    Args:
        update: Tensor of shape ``[n, d]``, floating.
        input_directions: ``U``, orthonormal columns of shape ``[d, r]``.
        output_directions: ``V``, orthonormal columns of shape ``[n, k]``.

    Returns:
        Tensor of shape ``[n, d]``, without any component that touches ``U`` or ``V``.

    Raises:
        TypeError: If the update is not floating.
        ValueError: If the shapes do not meet.

    Example:
        >>> corner = torch.tensor([[1.0], [0.0]])
        >>> project_out_both(torch.ones(2, 2), corner, corner)
        tensor([[0., 0.],
                [0., 1.]])
    """
    _check_side(update, output_directions, dim=0)
    cut = project_out(update, input_directions, strength=1.0)
    return project_out(cut.T, output_directions, strength=1.0).T


def principal_share(update: Tensor, directions: Tensor, inside: Tensor | None = None) -> Tensor:
    r"""Measure how much of an update reads from the given input directions.

    .. math:: \lVert \Delta U \rVert^2 / \lVert \Delta \rVert^2

    Args:
        update: Tensor of shape ``[n, d]``, floating.
        directions: Orthonormal columns of shape ``[d, r]``.
        inside: What :func:`reading_from` says of both, where it is known already.

    Returns:
        A scalar in ``[0, 1]``; a random update gives ``r / d`` on average, an update of zeros gives 0.

    Raises:
        ValueError: If the shapes do not meet.

    Example:
        >>> principal_share(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [0.0]]))
        tensor(0.3600)
    """
    inside = reading_from(update, directions) if inside is None else inside
    total = update.to(inside.dtype).square().sum()
    return torch.where(total == 0, 0.0, inside.square().sum() / total)


def _check_side(update: Tensor, directions: Tensor, dim: int) -> None:
    if update.ndim != 2 or directions.ndim != 2 or update.shape[dim] != directions.shape[0]:
        side = ("output", "input")[dim]
        raise ValueError(
            f"The {side} directions must have one row for each of the update's {side}s: got an update of shape "
            f"{list(update.shape)} and directions of shape {list(directions.shape)}. Is one of them transposed?"
        )
