"""What second moments and null spaces tell before the first edit, and which of them editing cannot rest on."""

import logging
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

log = logging.getLogger(__name__)
_STABLE = 0.05  # of key space: a null space that twice the text changes by more is not settled


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
    tokens: int | None = None,
) -> dict[str, float]:
    """What can be said about a matrix's statistics before the first edit.

    Args:
        state: What the method keeps of the matrix.
        second_moment: `E[k kᵀ]`, shape `[d_in, d_in]`.
        half_spectrum: Eigenvalues of the moment of half the text, shape `[d_in]`.
        threshold: Eigenvalues below it span the method's null space.
        tokens: How many keys the moment was computed from, if that is known.

    Returns:
        `null_space_share`, the share of key space that a null-space method may edit in, with `null_space_share_half`,
        what it would be with half the text; or `condition`, a lower bound of the second moment's condition number for
        the others; nothing without statistics. `tokens`, and `rank`, the most that so many keys can give.
    """
    seen: dict[str, float] = {}
    if tokens is not None and second_moment is not None:
        seen = {"tokens": tokens, "rank": min(tokens, len(second_moment)), "dimensions": len(second_moment)}
    return {**_null_space(state, second_moment, half_spectrum, threshold), **seen}


def _null_space(
    state: Mapping[str, Tensor], second_moment: Tensor | None, half_spectrum: Tensor | None, threshold: float | None
) -> dict[str, float]:
    """See `diagnose`."""
    if "basis" in state:
        d_in, directions = state["basis"].shape
        found = {"null_space_share": directions / d_in}
        if half_spectrum is not None and threshold is not None:
            found["null_space_share_half"] = int((half_spectrum < threshold).sum()) / d_in
        return found
    return {} if second_moment is None else {"condition": condition_estimate(second_moment)}


def report_statistics(found: Mapping[str, Mapping[str, float]]) -> None:
    """Warn of statistics that editing cannot rest on."""
    _warn_of_unseen(found)
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


def tokens_line(found: Mapping[str, Mapping[str, float]], source: str = "text") -> str:
    """How many tokens gave what rank, over all matrices; empty if nobody knows.

    Args:
        found: See `diagnose`.
        source: What the text is.
    """
    known = [numbers for numbers in found.values() if "tokens" in numbers]
    if not known:
        return ""
    tokens, rank, dimensions = (_span(numbers[part] for numbers in known) for part in ("tokens", "rank", "dimensions"))
    shares = [100 * numbers["null_space_share"] for numbers in known if "null_space_share" in numbers]
    room = f"; the null space is {_span(shares)} % of key space" if shares else ""
    return f"Second moments: {tokens} tokens of {source}, rank at most {rank} of {dimensions}{room}."


def _warn_of_unseen(found: Mapping[str, Mapping[str, float]]) -> None:
    unseen = max(
        (numbers["dimensions"] - numbers["rank"] for numbers in found.values() if "rank" in numbers), default=0
    )
    if unseen:
        log.warning(
            "The text for second moments has fewer tokens than keys have dimensions: %s directions or more were never "
            "seen and are edited freely. Use more text: --model.statistics.tokens.", _span([unseen]),
        )  # fmt: skip


def _span(numbers: Iterable[float]) -> str:
    """The least and the most of some numbers, once if they are the same."""
    least, *more = sorted({f"{number:,.0f}": number for number in numbers}.items(), key=lambda item: item[1])
    return f"{least[0]} to {more[-1][0]}" if more else least[0]
