"""How the rows and the principal directions of a weight lie to each other.

Shapes: n = d_out rows (neurons), d = d_in, r and k directions.
"""

import torch
from torch import Tensor

from sphere_callbacks.functional._checks import exact_products
from sphere_callbacks.functional.energy import unit_rows


def subspace_overlap(left: Tensor, right: Tensor) -> Tensor:
    r"""Average the squared cosines of the principal angles between two subspaces.

    .. math:: \lVert U^\top V \rVert_F^2 / \min(r, k)

    Args:
        left: ``U``, orthonormal columns of shape ``[d, r]``.
        right: ``V``, orthonormal columns of shape ``[d, k]``.

    Returns:
        A scalar in ``[0, 1]``: 1 if one contains the other, 0 if they are orthogonal; ``max(r, k) / d`` on average for
        random ones. NaN if one has no columns.

    Raises:
        ValueError: If the subspaces lie in spaces of different dimension.

    Example:
        >>> subspace_overlap(torch.eye(3)[:, :2], torch.eye(3)[:, 1:])
        tensor(0.5000)
    """
    if left.shape[0] != right.shape[0]:
        raise ValueError(f"Both bases must have one row a dimension, got {list(left.shape)} and {list(right.shape)}.")
    dtype = torch.promote_types(left.dtype, right.dtype)
    with exact_products():
        cosines = left.to(dtype).T @ right.to(dtype)  # [r, k]
    smaller = min(cosines.shape)
    return cosines.square().sum() / smaller if smaller else cosines.new_tensor(torch.nan)


def row_cosines(weight: Tensor, rows: Tensor) -> Tensor:
    """Compute the cosines between chosen rows.

    Args:
        weight: Tensor of shape ``[n, d]``, floating.
        rows: Indices of shape ``[m]``.

    Returns:
        Tensor of shape ``[m, m]``; a zero row has cosine 0 with every row.

    Raises:
        TypeError: If the weight is not floating.

    Example:
        >>> row_cosines(torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 2]))
        tensor([[1., 0.],
                [0., 1.]])
    """
    unit = unit_rows(weight[rows].detach())
    with exact_products():
        return unit @ unit.T
