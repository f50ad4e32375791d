"""The null space of a large second moment, from its large end.

All eigenvectors of a matrix with `d_in` = 8,960 take minutes on two cores, and twice that where a massive direction has
to be cut first. What is wanted is a space, not its eigenvectors: the complement of the directions above the threshold.
How many these are is known beforehand from the signs of `LDLᵀ` (Sylvester's law of inertia), in a tenth of the time. If
they are few, subspace iteration from a random start finds them, and the same number tells whether it has found all. If
they are many, the eigenvectors are computed after all, but once.
"""

import torch
from torch import Tensor

_MASSIVE = 64  # directions among which those are that blur all others
_FAR, _NEAR, _SAFE = 100.0, 10.0, 1e-3  # see `functional.null_space_basis`
_EXACT = 1e-4  # relative residual of an eigenpair that may be cut out
_FEW = 0.2  # of all directions: up to here iteration is faster than a full decomposition
_FEW_OF_SHARE = 0.4  # the same where the number of directions is given
_FAR_OF_MEAN = 40.0  # the same where the threshold is known to lie below a mean
_STEPS, _LOOKS = 3, 6  # multiplications before the first look at what was found, and looks with one more before each
_SLACK = 0.02  # of the threshold, by which the energy of an editable direction may exceed it


def null_space_of_large(second_moment: Tensor, threshold: float) -> Tensor:
    """Orthonormal columns that span what lies below the threshold.

    The dimension is that of the exact null space, and no direction q in the space that is returned holds more energy
    `qᵀ E[k kᵀ] q` than 1.02 times the threshold: both are checked, by inertia, wherever iteration was used.

    Args:
        second_moment: `E[k kᵀ]`, shape `[d_in, d_in]`.
        threshold: Eigenvalues below it count as zero.

    Returns:
        Columns Q, shape `[d_in, m]`; not eigenvectors, where iteration found them.

    Example:
        >>> null_space_of_large(torch.diag(torch.tensor([0.01, 4.0, 0.01])), 0.02).abs().sum(1).round()
        tensor([1., 0., 1.])
    """
    moment = _without_massive(second_moment, threshold)
    above = count_above(moment, threshold)
    block = above + above // 2 + _MASSIVE
    if block <= _FEW * len(moment):
        top = _largest(moment, above, block, (1 + _SLACK) * threshold)
        if top is not None:
            complement: Tensor = torch.linalg.qr(top, mode="complete")[0][:, above:]
            return complement
    eigenvalues, vectors = torch.linalg.eigh(moment)
    basis: Tensor = vectors[:, eigenvalues < threshold]
    return basis


def null_space_of_large_share(second_moment: Tensor, directions: int) -> Tensor:
    """Orthonormal columns that span the directions in which a second moment is smallest.

    Args:
        second_moment: `E[k kᵀ]`, shape `[d_in, d_in]`.
        directions: How many, below d_in.

    Returns:
        Columns Q, shape `[d_in, directions]`. None holds more energy than 1.02 times the least that lies outside of
        their span, which is checked by inertia wherever iteration was used.

    Example:
        >>> null_space_of_large_share(torch.diag(torch.tensor([0.01, 4.0, 0.01])), 2).abs().sum(1).round()
        tensor([1., 0., 1.])
    """
    above = len(second_moment) - directions
    moment = second_moment
    for _ in range(_LOOKS):
        # The threshold is not known, but so many directions cannot all hold more than the mean over them: what is cut
        # down to ten times as much stays above it. What was cut no longer blurs that mean, so that more may be cut.
        before, moment = moment, _without_massive(moment, float(moment.diagonal().sum()) / above, _FAR_OF_MEAN)
        if moment is before:
            break
    block = above + above // 2 + _MASSIVE
    top = _largest(moment, above, block) if block <= _FEW_OF_SHARE * len(moment) else None
    if top is not None:
        complement: Tensor = torch.linalg.qr(top, mode="complete")[0][:, above:]
        return complement
    basis: Tensor = torch.linalg.eigh(moment)[1][:, :directions]
    return basis


def count_above(matrix: Tensor, threshold: float) -> int:
    """How many eigenvalues of a symmetric matrix lie above the threshold.

    Example:
        >>> count_above(torch.diag(torch.tensor([1.0, 2.0, 3.0])), 1.5)
        2
    """
    shifted = matrix.clone()
    shifted.diagonal().sub_(threshold)
    factor, pivots, _ = torch.linalg.ldl_factor_ex(shifted)
    alone = pivots > 0  # a pair of negative ones stands for a block of two, one eigenvalue above and one below
    return int((factor.diagonal()[alone] > 0).sum()) + int((~alone).sum()) // 2


def _without_massive(moment: Tensor, threshold: float, far: float = _FAR) -> Tensor:
    """The moment with its massive directions cut down: a solver's error grows with the largest eigenvalue."""
    values, vectors = _ritz(moment, _start(moment, min(_MASSIVE, len(moment))), _LOOKS)
    cap = (_SAFE * values[-1]).clamp_min(_NEAR * threshold)
    if values[-1] <= far * threshold:
        return moment
    residuals = torch.linalg.vector_norm(moment @ vectors - vectors * values, dim=0)
    massive = (values > cap) & (residuals <= _EXACT * values)
    if not massive.any():
        return moment
    cut = vectors[:, massive] * (values[massive] - cap)
    return torch.addmm(moment, cut, vectors[:, massive].T, alpha=-1)


def _largest(moment: Tensor, count: int, block: int, most: float | None = None) -> Tensor | None:
    """Orthonormal columns for `count` directions that leave none above `most`; None if they are not found soon.

    Without `most` it is the least that they hold themselves, and a little.
    """
    basis = _start(moment, block)
    for look in range(_LOOKS):
        values, basis = _ritz(moment, basis, 1 if look else _STEPS)
        top = basis[:, block - count :]
        # On the complement of `top` this is the moment itself.
        rest = torch.addmm(moment, top * values[block - count :], top.T, alpha=-1)
        bound = (1 + _SLACK) * float(values[block - count]) if most is None else most
        if count_above(rest, bound) == 0:
            return top
    return None


def _ritz(moment: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Ritz values, ascending, and vectors after some steps of subspace iteration."""
    basis = start
    for _ in range(steps):
        basis = torch.linalg.qr(moment @ basis)[0]
    values, vectors = torch.linalg.eigh(basis.T @ (moment @ basis))
    return values, basis @ vectors


def _start(moment: Tensor, columns: int) -> Tensor:
    """The same random columns in every run, without a look at the global generator."""
    generator = torch.Generator(moment.device).manual_seed(0)
    return torch.randn(len(moment), columns, dtype=moment.dtype, device=moment.device, generator=generator)
