"""Where a run collapsed."""

from itertools import dropwhile
from typing import NamedTuple

from sphere_pl.evaluation.metrics.table import FIRST_RANK
from sphere_pl.report.reading import RunData

BOUND = 0.6


class Collapse(NamedTuple):
    """The validation at which a run had collapsed.

    Attributes:
        edits: Edits done by then.
        values: The metrics and the change of the energy there, under the names they were logged by.
    """

    edits: int
    values: dict[str, float]


def collapse(run: RunData, bound: float = BOUND) -> Collapse | None:
    """Find the first validation at which the efficacy over all edits so far fell below a bound.

    A run whose efficacy was never above it has not collapsed: it never worked.

    Args:
        run: The run.
        bound: The bound, in `[0, 1]`.

    Returns:
        Where that was, none if it held to the end.
    """
    efficacy = run.series("val/efficacy")
    # A NaN is no efficacy above any bound.
    worked = dropwhile(lambda point: not point[1] >= bound, zip(*efficacy, strict=True))
    fallen = [edits for edits, value in worked if not value >= bound]
    if not fallen:
        return None
    names = [*(f"val/{metric}" for metric in FIRST_RANK), "energy/change"]
    at = {name: dict(zip(*run.series(name), strict=True)) for name in names}
    return Collapse(int(fallen[0]), {name: values[fallen[0]] for name, values in at.items() if fallen[0] in values})
