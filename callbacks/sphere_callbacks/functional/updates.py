"""What RECT and PRUNE do to an update: drop small relative changes, restrain large singular values.

Shapes: n = d_out rows (neurons), d = d_in.

References:
    - Gu et al., "Model Editing Harms General Abilities of Large Language Models" (RECT, arXiv 2401.04700).
    - Ma et al., "Perturbation-Restrained Sequential Model Editing" (PRUNE, arXiv 2405.16821).
"""

import math

import torch
from torch import Tensor

from sphere_callbacks.functional._checks import as_matrix


def relative_mask(update: Tensor, weight: Tensor, keep: float = 0.4) -> Tensor:
    r"""Select the entries of an update that change the weight most in proportion.

    .. math:: c_{ij} = \lvert \Delta_{ij} / (W_{ij} + 10^{-8}) \rvert

    With ``k = floor((1 - keep) * n * d)``, entries not below the k-th smallest ``c`` are selected: ``keep`` of them
    and the threshold itself, and all that are equal to it.

    Args:
        update: Tensor of shape ``[n, d]``, floating.
        weight: Tensor of shape ``[n, d]``, the weight before the update.
        keep: Share of entries to select, in ``(0, 1]``. RECT's own text speaks of 20 %, AlphaEdit's comparison and the
            SPHERE paper use 40 %.

    Returns:
        Boolean tensor of shape ``[n, d]``.

    Raises:
        TypeError: If one of the tensors is not floating.
        ValueError: If the share is outside ``(0, 1]`` or the shapes differ.

    Example:
        >>> relative_mask(torch.tensor([[1.0, -2.0, 3.0, 4.0]]), torch.tensor([[1.0, 4.0, 1.0, 1.0]]), keep=0.5)
        tensor([[ True, False,  True,  True]])
    """
    if not 0 < keep <= 1:
        raise ValueError(f"`keep` must lie in (0, 1], got {keep}. Use 1 to keep every entry.")
    if update.shape != weight.shape:
        raise ValueError(
            f"`update` and `weight` must have one shape, got {list(update.shape)} and {list(weight.shape)}. "
            "Is one of them transposed?"
        )
    change = (as_matrix(update, "update") / (as_matrix(weight) + 1e-8)).abs()
    # Rounded first: (1 - 0.9) * 10 is 0.9999999999999998 and should count as 1.
    dropped = math.floor(round((1 - keep) * change.numel(), 6))
    if dropped == 0:
        return torch.ones_like(change, dtype=torch.bool)
    return change >= _smallest(change.flatten(), dropped)


def _smallest(values: Tensor, rank: int) -> Tensor:
    """The value with so many, itself among them, that are not larger."""
    if values.is_cuda and torch.are_deterministic_algorithms_enabled():  # which refuse to select on CUDA
        return values.sort().values[rank - 1]
    return values.kthvalue(rank).values


def _smaller_gram(matrix: Tensor) -> Tensor:
    """Return ``M M^T`` or ``M^T M``, whichever is smaller, in float64."""
    wide = matrix.double()
    return wide @ wide.T if matrix.shape[0] <= matrix.shape[1] else wide.T @ wide


def _check_finite(matrix: Tensor, name: str) -> None:
    if not matrix.isfinite().all():
        raise ValueError(f"`{name}` {list(matrix.shape)} has a NaN or an infinity, so it has no singular values.")


def spectral_norm(weight: Tensor) -> Tensor:
    """Compute the largest singular value.

    Args:
        weight: Tensor of shape ``[n, d]``, floating.

    Returns:
        A float64 scalar, from the eigenvalues of the smaller Gram matrix in float64.

    Raises:
        TypeError: If the weight is not floating.
        ValueError: If it is not a finite matrix.

    Example:
        >>> round(float(spectral_norm(torch.diag(torch.tensor([3.0, -5.0])))), 6)
        5.0
    """
    matrix = as_matrix(weight.detach())
    _check_finite(matrix, "weight")
    values: Tensor = torch.linalg.eigvalsh(_smaller_gram(matrix))
    largest: Tensor = values[-1].clamp(min=0).sqrt()
    return largest


def restrain_spectrum(change: Tensor, max_singular_value: float) -> Tensor:
    r"""Replace each singular value above a limit by a logarithm of it.

    .. math:: f(s) = s \text{ for } s \le m, \qquad f(s) = \ln s - \ln m + m \text{ for } s > m

    Only the singular pairs above the limit are found, from the smaller Gram matrix in float64: ``2 n d min(n, d)``
    flops and about ``9 min(n, d)^3`` for its eigenvectors.

    Args:
        change: Tensor of shape ``[n, d]``, the accumulated change of a weight.
        max_singular_value: ``m``, above 0; PRUNE takes the spectral norm of the weight before any edit.

    Returns:
        Tensor of shape ``[n, d]`` in the dtype of ``change``; ``change`` itself if no singular value exceeds the limit.

    Raises:
        TypeError: If the change is not floating.
        ValueError: If it is not a finite matrix or the limit is not above 0.

    Example:
        >>> restrain_spectrum(torch.diag(torch.tensor([1.0, 10.0])), 1.0)  # ln 10 + 1
        tensor([[1.0000, 0.0000],
                [0.0000, 3.3026]])
    """
    if not max_singular_value > 0:
        raise ValueError(f"`max_singular_value` must be above 0, got {max_singular_value}.")
    matrix = as_matrix(change.detach(), "change")
    _check_finite(matrix, "change")
    values, vectors = torch.linalg.eigh(_smaller_gram(matrix))
    singular = values.clamp(min=0).sqrt()
    above = singular > max_singular_value
    if not above.any():
        return change
    singular, basis = singular[above], vectors[:, above]  # [k], [min(n, d), k]
    removed = 1 - ((singular / max_singular_value).log() + max_singular_value) / singular
    left = matrix.shape[0] <= matrix.shape[1]
    rows = matrix.double() if left else matrix.double().T
    restrained: Tensor = rows - (basis * removed) @ (basis.T @ rows)
    return (restrained if left else restrained.T).to(change.dtype)
