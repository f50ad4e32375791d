"""Updates that would break the model are caught before they touch a weight."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from sphere_callbacks.functional import exact_products
from sphere_pl.errors import UserError

log = logging.getLogger(__name__)
_STABLE = 0.05  # of key space: a null space that twice the text changes by more is not settled


@dataclass(frozen=True)
class GuardSettings:
    """What is done about an update that is not finite or far too large.

    A retried batch meets a stronger regulariser: its keys and residuals are scaled by `1 / sqrt(s)`, which for least
    squares is the regulariser and all earlier keys weighed `s` times. Methods without one (ROME, EMMET) and methods
    without keys (FT, LocFT-BF, UltraEdit) are not helped by that: their batch is skipped.

    Args:
        action: `retry` the matrix with stronger regularisers and skip the batch if none helps, `skip` the batch at
            once, or `stop` the run.
        max_norm_ratio: Largest Frobenius norm of an update, as a multiple of its matrix's own.
        strengthen: s of the first retry; the next ones take s², s³ and so on.
        retries: How many retries.
        max_skipped: Batches skipped one after another before the run stops: the model has collapsed then.
    """

    action: Literal["retry", "skip", "stop"] = "retry"
    max_norm_ratio: float = 10.0
    strengthen: float = 10.0
    retries: int = 3
    max_skipped: int = 3

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.action not in ("retry", "skip", "stop"):
            raise UserError(f"`guard.action={self.action!r}` must be retry, skip or stop.")
        if self.max_norm_ratio <= 0 or self.strengthen <= 1 or self.retries < 0 or self.max_skipped < 1:
            raise UserError(
                f"`guard.max_norm_ratio={self.max_norm_ratio}` must be above 0, `strengthen={self.strengthen}` above "
                f"1, `retries={self.retries}` at least 0 and `max_skipped={self.max_skipped}` at least 1."
            )


class RefusedUpdateError(Exception):
    """No update of a matrix was good enough to be applied.

    Args:
        matrix: Its name.
        reason: What was wrong with the last one.
    """

    def __init__(self, matrix: str, reason: str) -> None:
        super().__init__(f"the update of {matrix} {reason}")
        self.matrix, self.reason = matrix, reason


def guarded(
    solve: Callable[[float], Tensor], weight: Tensor, matrix: str, settings: GuardSettings, adjustable: bool = True
) -> tuple[Tensor, float, str]:
    """Find an update that can be applied.

    Args:
        solve: Finds the update for a strength of the regulariser; 1 is the method's own.
        weight: The matrix, shape `[d_out, d_in]`.
        matrix: Its name.
        settings: What counts as good and how often to retry.
        adjustable: Whether the strength makes a difference.

    Returns:
        The update, the strength that it needed, and what was wrong at strength 1 (empty if nothing was).

    Raises:
        RefusedUpdateError: If there is none.
    """
    retries = settings.retries if settings.action == "retry" and adjustable else 0
    first = reason = ""
    for attempt in range(retries + 1):
        strength = settings.strengthen**attempt
        update, reason = _attempt(lambda s=strength: solve(s), weight, settings.max_norm_ratio)  # type: ignore[misc]
        if update is not None:
            return update, strength, first
        first = first or reason
    raise RefusedUpdateError(matrix, reason)


def _attempt(solve: Callable[[], Tensor], weight: Tensor, limit: float) -> tuple[Tensor | None, str]:
    """Solve once, in full float32; says what is wrong with the update if it cannot be applied."""
    try:
        with exact_products():
            update = solve()
    except LinAlgError as error:
        return None, f"could not be solved for ({str(error).splitlines()[0]})"
    ratio = float(torch.linalg.matrix_norm(update) / torch.linalg.matrix_norm(weight).clamp_min(1e-30))
    if ratio <= limit:
        return update, ""
    if not bool(torch.isfinite(update).all()):
        return None, "is not finite"
    return None, f"is {ratio:.3g} times as large as the matrix (guard.max_norm_ratio={limit:g})"


def condition_estimate(second_moment: Tensor) -> float:
    """A lower bound of a symmetric matrix's condition number, from its Cholesky factor; infinite if it is singular.

    Example:
        >>> round(condition_estimate(torch.diag(torch.tensor([4.0, 1.0]))))
        4
    """
    factor, failed = torch.linalg.cholesky_ex(second_moment.double())
    diagonal = factor.diagonal()
    if int(failed) or not bool((diagonal > 0).all()):
        return float("inf")
    return float((diagonal.max() / diagonal.min()) ** 2)


def diagnose(
    state: Mapping[str, Tensor],
    second_moment: Tensor | None,
    half_spectrum: Tensor | None = None,
    threshold: float | None = None,
) -> dict[str, float]:
    """What can be said about a matrix's statistics before the first edit.

    Args:
        state: What the method keeps of the matrix.
        second_moment: `E[k kᵀ]`, shape `[d_in, d_in]`.
        half_spectrum: Eigenvalues of the moment of half the text, shape `[d_in]`.
        threshold: Eigenvalues below it span the method's null space.

    Returns:
        `null_space_share`, the share of key space that a null-space method may edit in, with `null_space_share_half`,
        what it would be with half the text; or `condition`, a lower bound of the second moment's condition number for
        the others; nothing without statistics.
    """
    if "basis" in state:
        d_in, directions = state["basis"].shape
        found = {"null_space_share": directions / d_in}
        if half_spectrum is not None and threshold is not None:
            found["null_space_share_half"] = int((half_spectrum < threshold).sum()) / d_in
        return found
    return {} if second_moment is None else {"condition": condition_estimate(second_moment)}


def report_statistics(found: Mapping[str, Mapping[str, float]]) -> None:
    """Warn of statistics that editing cannot rest on."""
    for matrix, numbers in found.items():
        share, condition = numbers.get("null_space_share", 0.5), numbers.get("condition", 1.0)
        if not 0.01 <= share <= 0.999:
            log.warning(
                "%s: %.2f %% of key space count as null space. %s", matrix, 100 * share,
                "Edits have next to no room: raise null_space_threshold." if share < 0.5 else
                "Next to nothing of the model's knowledge is protected: lower null_space_threshold, or use more text "
                "(statistics.tokens).",
            )  # fmt: skip
        before = numbers.get("null_space_share_half", share)
        if abs(share - before) > _STABLE:
            log.warning(
                "%s: twice the text moved the null space from %.1f %% of key space to %.1f %%: it still depends on how "
                "much text there is. Use more: --model.statistics.tokens.", matrix, 100 * before, 100 * share,
            )  # fmt: skip
        if condition > 1e12:
            log.warning(
                "%s: the second moment is ill-conditioned (condition number %.1e or more). Use more text: "
                "--model.statistics.tokens.", matrix, condition,
            )  # fmt: skip
