"""Table 1 of the paper, in its form: every method with and without SPHERE, mean over the draws."""

from collections.abc import Sequence

from study.markup import shown
from study.runs import Pair, Run, grouped, kind, pairs, pooled

COLUMNS = ("efficacy", "generalization", "specificity", "neighborhood_agreement")
HEAD = """## Table 1

Scores over all edits at the last validation that the runs with and without SPHERE share: mean over the draws ± its
standard error, which counts records and not draws. In bold the better of two scores where the 95 % interval of their
difference excludes 0; of {differences} differences about {chance:.0f} would be so by chance alone.

| method | edits | draws | efficacy | generalization | specificity | agreement |
|---|---|---|---|---|---|---|"""


def table1(runs: Sequence[Run]) -> str:
    """Two rows for each method with its settings, without and with SPHERE."""
    found = grouped(pairs(runs), lambda pair: (kind(pair.plain), pair.edits))
    rows = [row for (name, _), members in found.items() for row in _rows(name, members)]
    differences = len(found) * len(COLUMNS)
    head = HEAD.format(differences=differences, chance=0.05 * differences)
    return "\n".join([head, *rows, ""]) if rows else ""


def _rows(name: str, members: Sequence[Pair]) -> tuple[str, str]:
    columns = [_cells(members, column) for column in COLUMNS]
    without, behind = (" | ".join(column) for column in zip(*columns, strict=True))
    return f"| {name} | {members[0].edits:.0f} | {len(members)} | {without} |", f"| + SPHERE |  |  | {behind} |"


def _cells(members: Sequence[Pair], column: str) -> tuple[str, str]:
    """A score without and with SPHERE; empty where a run has not measured it."""
    name = f"val/{column}"
    differences = [found for pair in members if (found := pair.difference(name)) is not None]
    if len(differences) < len(members):
        return "", ""
    without, behind = (
        pooled([score for run in runs if (score := run.proportion(name, members[0].edits)) is not None])
        for runs in ([pair.plain for pair in members], [pair.sphere for pair in members])
    )
    side = pooled(differences).side
    return shown(without, bold=side < 0), shown(behind, bold=side > 0)
