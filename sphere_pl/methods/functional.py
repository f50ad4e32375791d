"""Closed-form updates: tensors in, `Δ [d_out, d_in]` out.

Shapes: `n` edits of a batch, `d_in` keys, `d_out` values, `m` null-space directions, `t` tokens. Keys and residuals
hold one edit a row, so our `K` is the transpose of the papers'.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sphere_pl.methods.large_spectrum import null_space_of_large, null_space_of_large_share
from sphere_pl.methods.memory import KeyMemory, MovingNullSpace

_LARGE = 4096  # dimensions from where on a CPU looks for the null space from its large end
_FAR, _NEAR = 100.0, 10.0  # times the threshold: from where on eigenvalues are cut, and down to where
_LEAST_LEFT, _MOST_ROOM = 0.01, 99.0  # of a taken key: what the others leave of it; how much weight it adds
_SAFE = 1e-3  # of the largest eigenvalue: nothing is cut below, as rounding could take it under the threshold


def spread_residual(residual: Tensor, layers_left: int) -> Tensor:
    """Share a residual `[n, d_out]` over the layers that are still to be edited (MEMIT, Eq. 20)."""
    return residual / layers_left


def null_space_basis(second_moment: Tensor, threshold: float) -> Tensor:
    """Directions of key space that the model's own knowledge hardly uses (AlphaEdit, Sec. 3.2).

    A direction that ordinary keys fill to the brim (massive activations) blurs all small eigenvalues, since a solver's
    error grows with the largest one. Where one is far above the threshold, the large ones are cut down and the rest
    are found again: as good as double precision, at single precision's cost.

    Args:
        second_moment: `E[k kᵀ]`, shape `[d_in, d_in]`.
        threshold: Eigenvalues below it count as zero.

    Returns:
        Orthonormal columns Q, shape `[d_in, m]`; the papers' projector is `P = Q Qᵀ`.

    Example:
        >>> null_space_basis(torch.diag(torch.tensor([1.0, 1e-3])), 0.02).abs()
        tensor([[0.],
                [1.]])
    """
    if len(second_moment) >= _LARGE and second_moment.device.type == "cpu":
        return null_space_of_large(second_moment, threshold)
    eigenvalues, vectors = torch.linalg.eigh(second_moment)
    if eigenvalues[-1] > _FAR * threshold:
        cap = (_SAFE * eigenvalues[-1]).clamp_min(_NEAR * threshold)
        large = eigenvalues > cap
        cut = vectors[:, large] * (eigenvalues[large] - cap)
        capped = torch.addmm(second_moment, cut, vectors[:, large].T, alpha=-1)
        del vectors, cut
        eigenvalues, vectors = torch.linalg.eigh(capped)
    basis: Tensor = vectors[:, eigenvalues < threshold]
    return basis


def null_space_of_share(second_moment: Tensor, share: float) -> Tensor:
    """The share of key space in which ordinary keys are smallest: columns as of `null_space_basis`.

    Example:
        >>> null_space_of_share(torch.diag(torch.tensor([4.0, 1.0])), 0.5).abs()
        tensor([[0.],
                [1.]])
    """
    if len(second_moment) >= _LARGE and second_moment.device.type == "cpu":
        return null_space_of_large_share(second_moment, _directions(len(second_moment), share))
    return null_space_basis(second_moment, share_threshold(second_moment, share))


def specific_directions(second_moment: Tensor, shared: float) -> Tensor:
    """What is left of key space without the leading directions of ordinary keys.

    Args:
        second_moment: `E[k kᵀ]` or a multiple, shape `[d_in, d_in]`.
        shared: The fewest leading directions are left out whose eigenvalues reach this share of their sum; one stays.

    Returns:
        Orthonormal columns, shape `[d_in, m]`.

    Example:
        >>> specific_directions(torch.diag(torch.tensor([4.0, 1.0, 1.0])), 0.5).shape
        torch.Size([3, 2])
    """
    eigenvalues, vectors = torch.linalg.eigh(second_moment)
    # On the CPU: CUDA refuses running sums where a trainer asks for deterministic algorithms.
    sums = eigenvalues.clamp(min=0).flip(0).cpu().cumsum(0)
    count = int((sums < shared * sums[-1]).sum()) + 1
    basis: Tensor = vectors[:, : max(1, len(eigenvalues) - count)]
    return basis


def _directions(d_in: int, share: float) -> int:
    return min(max(1, round(share * d_in)), d_in - 1)


def share_threshold(second_moment: Tensor, share: float) -> float:
    """The threshold below which a share of the eigenvalues of a second moment `[d_in, d_in]` lie, one at least.

    Example:
        >>> share_threshold(torch.diag(torch.tensor([4.0, 1.0, 2.0, 3.0])), 0.5)
        3.0
    """
    eigenvalues = torch.linalg.eigvalsh(second_moment)
    place = _directions(len(eigenvalues), share)
    # Fewer tokens than dimensions leave many eigenvalues at zero, or below it by rounding.
    least = torch.finfo(eigenvalues.dtype).eps * eigenvalues[-1]
    return float(eigenvalues[place].clamp_min(least))


def energy_within(second_moment: Tensor, basis: Tensor) -> float:
    """Mean squared norm of ordinary keys in the span of the columns of `basis`: `tr(Qᵀ E[k kᵀ] Q)`.

    It is at least a millionth of their whole mean squared norm: what few tokens leave in their null space is rounding.
    """
    within = (second_moment @ basis).mul_(basis).sum()
    return float(torch.maximum(within, 1e-6 * second_moment.diagonal().sum()))


def alphaedit_update(keys: Tensor, residuals: Tensor, basis: Tensor, past: KeyMemory | MovingNullSpace) -> Tensor:
    """AlphaEdit's update in the coordinates of the null space (Fang et al. 2025, arXiv 2410.02355, Eq. 14).

    The paper solves `[P (K Kᵀ + M) + λ I] X = P K Rᵀ` in d_in dimensions. Its solution lies in the range of `P`, so
    `X = Q Y` with the smaller, symmetric positive definite system `(Qᵀ (K Kᵀ + M) Q + λ I) Y = Qᵀ K Rᵀ`. The system
    without the batch's keys is a `KeyMemory`; with them it is MEMIT's, with another regulariser.

    Args:
        keys: Keys of the batch, shape `[n, d_in]`.
        residuals: What the layer's output shall gain, shape `[n, d_out]`.
        basis: Null-space directions Q, shape `[d_in, m]`.
        past: All earlier keys in that basis, weighed or forbidden, and λ, the weight of the update's own norm.

    Returns:
        Δ of shape `[d_out, d_in]`.
    """
    reduced = keys @ basis  # [n, m]
    # Leaving the null space costs n rows here; after the solve it would cost d_out.
    return _regression(reduced, residuals, past.whiten(reduced), basis)


def room_of_taken_keys(overlap: Tensor, taken: Tensor) -> Tensor:
    """Weights that give requests the room that earlier ones have taken at their keys.

    A memory of earlier keys asks that nothing changes there. A request of nearly the same key wants just that, and is
    held back: to `h / (1 + h)` of its residual with `h = kᵀ A⁻¹ k`. Without the keys that are taken, A would be smaller
    and `h` larger, by Woodbury's identity; a row of weight `w` gets `w h / (1 + w h)`, so their ratio is the weight.
    Where the keys are equal, the update is that of a memory without them.

    Args:
        overlap: `K A⁻¹ Kᵀ` of the keys of `n` requests and `e` taken ones, `[n + e, n + e]`; A holds the taken ones.
        taken: Which of those are in the way of which request, `[n, e]`.

    Returns:
        Weights of at least 1, `[n]`; at most 100, since keys are measured on a model that has changed since.

    Example:
        >>> h = 2 / (1 + 2)  # a key of which the memory has one already, h = 2 without it
        >>> room_of_taken_keys(torch.full((2, 2), h), torch.tensor([[True]]))
        tensor([3.0000])
    """
    n = len(taken)
    weights = overlap.new_ones(n)
    if not bool(overlap.isfinite().all()):  # found out by the solve, which is refused with a reason
        return weights
    for request, others in enumerate(taken.to(overlap.device)):
        if not others.any():
            continue
        kept = torch.cat([others.new_zeros(n), others])
        across, inner, own = overlap[request, kept], overlap[kept][:, kept], overlap[request, request]
        left, vectors = torch.linalg.eigh(torch.eye(len(inner)).to(inner) - (inner + inner.T) / 2)
        gained = ((across @ vectors).square() / left.clamp_min(_LEAST_LEFT)).sum()
        weights[request] = 1 + (gained / own).clamp(0, _MOST_ROOM)
    return weights


def moment_factor(second_moment: Tensor) -> Tensor:
    """The Cholesky factor of a second moment, which may be singular.

    Args:
        second_moment: `E[k kᵀ]` or a multiple, shape `[d_in, d_in]`; changed in place: a millionth of its mean
            diagonal is added to it.
    """
    # The moment of fewer tokens than d_in is singular, and its float32 rounding can make it slightly negative.
    floor = 1e-6 * second_moment.diagonal().mean()
    second_moment.diagonal().add_(floor)
    factor, refused = torch.linalg.cholesky_ex(second_moment)
    if refused.item():  # beside a massive direction, rounding may be more than that
        eigenvalues, vectors = torch.linalg.eigh(second_moment)
        lifted = vectors * eigenvalues.clamp(min=torch.maximum(floor, 1e-12 * eigenvalues[-1])).sqrt()
        factor = torch.linalg.qr(lifted.T).R.T  # R Rᵀ from the left: its diagonal may be negative, which no solve minds
    found: Tensor = factor
    return found


def whiten(keys: Tensor, factor: Tensor) -> Tensor:
    """`C⁻¹ k` for each row of `keys` `[n, d_in]`, from the Cholesky factor of C."""
    return torch.cholesky_solve(keys.T, factor).T


def memit_update(keys: Tensor, residuals: Tensor, whitened: Tensor) -> Tensor:
    """MEMIT's update `R Kᵀ (C + K Kᵀ)⁻¹` by Woodbury's identity (Meng et al. 2023, arXiv 2210.07229, Eq. 14).

    Args:
        keys: Keys of the batch, shape `[n, d_in]`.
        residuals: What the layer's output shall gain, shape `[n, d_out]`.
        whitened: `C⁻¹ k` for each key, shape `[n, d_in]`, where C is the weighted second moment.

    Returns:
        Δ of shape `[d_out, d_in]`.
    """
    return _regression(keys, residuals, whitened)


def _regression(keys: Tensor, residuals: Tensor, whitened: Tensor, basis: Tensor | None = None) -> Tensor:
    """`Rᵀ (I + K A⁻¹ Kᵀ)⁻¹ K A⁻¹` from `whitened = K A⁻¹`, carried back from `basis` if there is one."""
    system = keys @ whitened.T  # [n, n]
    system.diagonal().add_(1.0)
    solution: Tensor = torch.linalg.solve(system, residuals)  # [n, d_out]
    return solution.T @ (whitened if basis is None else whitened @ basis.T)


def rome_update(key: Tensor, residual: Tensor, direction: Tensor) -> Tensor:
    """ROME's rank-one update `r uᵀ / (kᵀ u)` (Meng et al. 2022, arXiv 2202.05262, Eq. 2).

    Args:
        key: The key k, shape `[1, d_in]`.
        residual: What the layer's output shall gain for it, shape `[1, d_out]`.
        direction: u, which is `C⁻¹ k` in the paper, shape `[1, d_in]`; its length does not matter.

    Returns:
        Δ of shape `[d_out, d_in]` with `Δ k = r`.

    Example:
        >>> rome_update(torch.tensor([[1.0, 1.0]]), torch.tensor([[6.0]]), torch.tensor([[2.0, 1.0]]))
        tensor([[4., 2.]])
    """
    return residual.T @ direction / (key @ direction.T)


def emmet_update(keys: Tensor, residuals: Tensor, whitened: Tensor, ridge: float) -> Tensor:
    """EMMET's update `R (Kᵀ C⁻¹ K)⁻¹ Kᵀ C⁻¹` (Gupta et al. 2024, arXiv 2403.14236).

    Of all updates with `Δ K = R` it is the one that changes the outputs of ordinary keys least.

    Args:
        keys: Keys of the batch, shape `[n, d_in]`.
        residuals: What the layer's output shall gain, shape `[n, d_out]`.
        whitened: `C⁻¹ k` for each key, shape `[n, d_in]`.
        ridge: Added to the diagonal of `Kᵀ C⁻¹ K`, as a share of its mean: two prompts about one subject can have all
            but the same key, and the constraints of both cannot hold then.

    Returns:
        Δ of shape `[d_out, d_in]`.
    """
    system = keys @ whitened.T  # [n, n]
    system.diagonal().add_(ridge * system.diagonal().mean())
    solution: Tensor = torch.linalg.solve(system, residuals)  # [n, d_out]
    return solution.T @ whitened


class Moments(NamedTuple):
    """Number, mean and sum of squared deviations of features seen so far.

    Attributes:
        seen: How many rows, shape `[]`.
        mean: Their mean, shape `[f]`.
        squares: Sum of squared deviations from it, shape `[f]`.
    """

    seen: Tensor
    mean: Tensor
    squares: Tensor

    def merge(self, features: Tensor) -> "Moments":
        """Take in further rows `[t, f]` (Chan et al. 1979)."""
        seen, mean = self.seen + len(features), features.mean(0)
        shift, share = mean - self.mean, len(features) / seen
        squares = (features - mean).square().sum(0) + shift.square() * self.seen * share
        return Moments(seen, self.mean + shift * share, self.squares + squares)

    def normalize(self, features: Tensor) -> Tensor:
        """Rows `[t, f]` less their mean, divided by the standard deviation; a constant feature becomes 0."""
        deviation = (self.squares / (self.seen - 1).clamp_min(1)).sqrt()
        return torch.where(deviation > 0, (features - self.mean) / deviation, 0.0)


def ultraedit_update(keys: Tensor, gradients: Tensor, moments: Moments, learning_rate: float) -> Tensor:
    """UltraEdit's update (Gu et al. 2025, arXiv 2505.14679): least squares over tokens with normalised values.

    With ĥ and ĝ a token's key and gradient normalised by the moments of the whole stream, the output at the token shall
    gain `v = -η ‖ĥ‖² ĝ`, and `Δᵀ = (HᵀH + I)⁻¹ Hᵀ V` for the keys H as they are. The same is `Hᵀ (H Hᵀ + I)⁻¹ V`:
    whichever system is smaller is solved.

    Args:
        keys: Inputs of the matrix, shape `[t, d_in]`.
        gradients: Gradients of the loss with respect to its outputs, shape `[t, d_out]`.
        moments: Of `[key, gradient]` rows, these tokens included, `f = d_in + d_out`.
        learning_rate: η.

    Returns:
        Δ of shape `[d_out, d_in]`.
    """
    t, d_in = keys.shape
    normalized = moments.normalize(torch.cat([keys, gradients], dim=1))
    scale = normalized[:, :d_in].square().sum(1, keepdim=True)  # [t, 1]
    values = -learning_rate * scale * normalized[:, d_in:]  # [t, d_out]
    wide = t <= d_in
    system = keys @ keys.T if wide else keys.T @ keys
    system.diagonal().add_(1.0)
    factor = torch.linalg.cholesky(system)
    if wide:
        return torch.cholesky_solve(values, factor).T @ keys
    return torch.cholesky_solve(keys.T @ values, factor).T
