"""Markdown of the study's page."""

from collections.abc import Sequence

from study.runs import Estimate

LONG = 12  # lines; more are folded


def folded(words: str, lines: Sequence[str], at_most: int = LONG) -> list[str]:
    """Lines that open with a click where they are many: a reader who wants the answer shall not scroll past them.

    Args:
        words: What they are, in the place that is clicked on.
        lines: Rows of a table with its head, or points of a list.
        at_most: How many lines stay in sight.
    """
    if len(lines) <= at_most:
        return list(lines)
    # Markdown inside HTML is read as such only between empty lines.
    return ["<details>", f"<summary>{words}</summary>", "", *lines, "", "</details>"]


def shown(score: Estimate, *, bold: bool = False) -> str:
    """A score with its standard error.

    Example:
        >>> shown(Estimate(0.5, 0.0125), bold=True)
        '**0.500 ± 0.013**'
    """
    words = f"{score.value:.3f} ± {score.error:.3f}"
    return f"**{words}**" if bold else words
