"""Tables of docs/study.md, from the results alone."""

import math
from collections.abc import Sequence

from study.comparison import MODELS, REMEMBERING, Result, find, of_model, sphere_pairs
from study.paired import Exchanged
from study.runs import Estimate

CLEAR = 0.05  # of McNemar's exact test


def percent(share: Estimate) -> str:
    """A share with its standard error, where it was asked for.

    Example:
        >>> percent(Estimate(0.9, 0.0173))
        '0.90 ± 0.02'
    """
    if math.isnan(share.value):
        return "not asked"
    return f"{share.value:.2f} ± {share.error:.2f}"


def apart(found: Exchanged | None) -> str:
    """A difference of paired facts with its test; in bold where it is told apart from none.

    Example:
        >>> apart(Exchanged(100, 20, 5))
        '**+0.15 ± 0.05**, p 0.004'
    """
    if found is None:
        return ""
    difference = found.difference
    words = f"{difference.value:+.2f} ± {difference.error:.2f}"
    p = "p < 0.001" if found.p_value < 0.001 else f"p {found.p_value:.3f}"
    return f"**{words}**, {p}" if found.p_value < CLEAR else f"{words}, {p}"


def verdict_table(results: Sequence[Result], model: str) -> list[str]:
    """What each method leaves of a model, one table for each number of edits."""
    lines = []
    for edits, rows in of_model(results, model).items():
        reference, retrieval = find(rows, "alphaedit"), find(rows, "scr_unconfirmed")
        lines += [
            f"### {MODELS[model]}, {edits:,} edits in batches of {rows[0].key.batch_size}",
            "",
            "| method | holds, written freely | in other words | after 50 tokens of other text | others as before "
            "| perplexity | energy | holds, minus AlphaEdit's | minus SCR's, unconfirmed |",
            "|---|---|---|---|---|---|---|---|---|",
            *(_row(each, reference, retrieval) for each in rows),
            "",
        ]
    return lines


def _row(each: Result, reference: Result | None, retrieval: Result | None) -> str:
    if each.broke:
        return f"| {each.name} | broke off: {each.found['failed']} |" + " |" * 7
    held, asked = each.held()
    against = [apart(each.against(other)) if other not in (None, each) else "" for other in (reference, retrieval)]
    error = each.after("long_prefix/efficacy_standard_error")
    cells = [
        f"{percent(each.share('written'))} ({held} of {asked})",
        percent(each.share("written_paraphrase")),
        percent(Estimate(each.after("long_prefix/efficacy"), error)),
        percent(each.share("neighbor")),
        f"x{each.perplexity:.3f}",
        f"{each.energy:+z.4%}" if math.isfinite(each.energy) else "",
        *against,
    ]
    return f"| {each.name} | {' | '.join(cells)} |"


def sphere_table(results: Sequence[Result]) -> list[str]:
    """Each method with SPHERE minus without, on the same facts."""
    lines = [
        "| model | method | edits | remembers earlier keys | holds | in other words | others as before |",
        "|---|---|---|---|---|---|---|",
    ]
    for plain, sphere in sphere_pairs(results):
        remembers = "yes" if plain.key.method in REMEMBERING else "no"
        kinds = ("written", "written_paraphrase", "neighbor")
        cells = " | ".join(apart(sphere.against(plain, kind)) for kind in kinds)
        lines.append(f"| {MODELS[plain.key.model]} | {plain.name} | {plain.key.edits} | {remembers} | {cells} |")
    return lines
