"""The low-curvature subspace of a weight, from Kronecker factors, and the projection of updates onto it.

Shapes: n = d_out, d = d_in.

References:
    - Ikram et al., "CrispEdit", ICML 2026 (arXiv 2602.15823).
    - Martens and Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature" (arXiv 1503.05671).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sphere_callbacks.functional._checks import as_matrix, check_floating, exact_products
from sphere_callbacks.functional.projection import _check_ratio, _check_strength


class CurvatureBasis(NamedTuple):
    """The curvature of a weight in its own coordinates.

    Attributes:
        inputs: Eigenvectors of the input second moment in columns, ``[d, d]``.
        outputs: Eigenvectors of the second moment of the output gradients in columns, ``[n, n]``.
        high: Which pairs of an output and an input direction the loss is curved along, booleans ``[n, d]``.
    """

    inputs: Tensor
    outputs: Tensor
    high: Tensor


def curvature_basis(input_moment: Tensor, output_moment: Tensor, cumulative_ratio: float) -> CurvatureBasis:
    r"""Find the directions along which the loss over ordinary text is curved.

    The curvature of a weight is approximated by :math:`A \otimes B` with the second moments
    :math:`A = E[k k^\top]` of its inputs and :math:`B = E[g g^\top]` of the gradients at its outputs. Its eigenvectors
    are the pairs of one eigenvector of each, its eigenvalues their products: no matrix larger than the two is formed.

    Args:
        input_moment: ``A``, symmetric, ``[d, d]``, floating. Half precision is computed in float32.
        output_moment: ``B``, symmetric, ``[n, n]``.
        cumulative_ratio: The curved pairs are the fewest whose eigenvalues exceed this share of their sum, ``[0, 1)``.

    Raises:
        TypeError: If a moment is not floating.
        ValueError: If the ratio is outside ``[0, 1)``, or a moment is not square or not finite.

    Example:
        >>> basis = curvature_basis(torch.diag(torch.tensor([8.0, 1.0])), torch.eye(1), cumulative_ratio=0.5)
        >>> basis.high.sum(), (basis.inputs[:, basis.high[0]]).abs().T
        (tensor(1), tensor([[1., 0.]]))
    """
    _check_ratio(cumulative_ratio)
    (a, inputs), (b, outputs) = (_spectrum(each) for each in (input_moment, output_moment))
    curvature = torch.outer(b.double(), a.double())
    ordered, places = curvature.flatten().sort(descending=True, stable=True)
    total = ordered.sum()
    # Strictly more than the share; where nothing is curved nothing is high.
    # On the CPU: CUDA refuses running sums where a trainer asks for deterministic algorithms.
    count = int((ordered.cpu().cumsum(0) <= cumulative_ratio * total.cpu()).sum()) + 1 if total > 0 else 0
    high = torch.zeros(len(ordered), dtype=torch.bool, device=places.device)
    high[places[:count]] = True
    return CurvatureBasis(inputs, outputs, high.view_as(curvature))


def _spectrum(moment: Tensor) -> tuple[Tensor, Tensor]:
    if moment.ndim != 2 or moment.shape[0] != moment.shape[1] or not bool(moment.isfinite().all()):
        raise ValueError(f"A second moment must be a finite square matrix, got shape {list(moment.shape)}.")
    moment = as_matrix(moment, "moment")
    values, vectors = torch.linalg.eigh((moment + moment.T) / 2)
    return values.clamp(min=0), vectors


def project_low_curvature(update: Tensor, basis: CurvatureBasis, strength: float = 1.0) -> Tensor:
    r"""Weaken the part of an update along which the loss is curved.

    .. math:: \Delta' = \Delta - \alpha \, U_B \left( M \circ U_B^\top \Delta U_A \right) U_A^\top

    with the eigenvectors ``U_A`` and ``U_B`` of the two factors and the mask ``M`` of the curved pairs.

    Args:
        update: Tensor of shape ``[n, d]``, floating.
        basis: From :func:`curvature_basis`.
        strength: ``α`` in ``[0, 1]``; 0 returns the update as it is.

    Raises:
        TypeError: If the update is not floating.
        ValueError: If the shapes do not meet or the strength is out of range.

    Example:
        >>> basis = curvature_basis(torch.diag(torch.tensor([8.0, 1.0])), torch.eye(1), cumulative_ratio=0.5)
        >>> project_low_curvature(torch.tensor([[3.0, 4.0]]), basis)
        tensor([[0., 4.]])
    """
    _check_strength(strength)
    check_floating(update)
    if tuple(update.shape) != tuple(basis.high.shape):
        raise ValueError(
            f"The update has shape {list(update.shape)}, the curvature {list(basis.high.shape)}. Is one transposed?"
        )
    if strength == 0:
        return update
    dtype = torch.promote_types(update.dtype, basis.inputs.dtype)
    inputs, outputs = basis.inputs.to(dtype), basis.outputs.to(dtype)
    with exact_products():
        inside = (outputs.T @ update.to(dtype) @ inputs) * basis.high
        removed = outputs @ inside @ inputs.T
    return (update.to(dtype) - strength * removed).to(update.dtype)
