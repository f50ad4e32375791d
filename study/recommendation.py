"""Which configuration to take: the table of docs/study.md, for what `--config recommended` carries."""

from collections.abc import Sequence

from study.comparison import Result


def recommendation(results: Sequence[Result]) -> str:
    """The section of the page."""
    return ""
