"""The table of a comparison, after the paper's Table 1: as HTML, CSV and LaTeX."""

import csv
import io
import math
from collections.abc import Sequence
from html import escape

from sphere_pl.evaluation.metrics.table import FIRST_RANK, is_share, metric_of
from sphere_pl.evaluation.scored import error_name
from sphere_pl.report.groups import UNEDITED, Estimate, Group, best, blocks
from sphere_pl.report.html import Html
from sphere_pl.report.style import label, signed_percent
from sphere_pl.text.numbers import counted, duration, percent, plain

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def html_table(groups: Sequence[Group]) -> Html:
    """Mean ± standard error for each group below the unedited model, the best in bold."""
    winners = best(groups)
    rows = []
    for (model, edits), block in blocks(groups).items():
        name = escape(f"{model}, {counted(edits, 'edit')}" if model else f"{counted(edits, 'edit')} so far")
        rows.append(f'<tr class="block"><td colspan="{len(FIRST_RANK) + 3}">{name}</td></tr>')
        rows += [_html_row(f"<i>{UNEDITED}</i>", block[0], "before", {})] if block[0].finished else []
        rows += [_html_row(_html_name(group), group, "after", winners) for group in block]
    titles = "".join(
        f"<th>{escape(label(metric))} {'↑' if _more_is_better(metric) else '↓'}</th>" for metric in FIRST_RANK
    )
    head_row = f"<tr><th>method</th>{titles}<th>energy</th><th>per edit</th></tr>"
    return (
        f'<div class="wide"><table class="runs"><thead>{head_row}</thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def csv_table(groups: Sequence[Group]) -> str:
    """All numbers in full precision, one line for each group and one for each unedited model."""
    fields = [name for metric in FIRST_RANK for name in (metric, error_name(metric))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "method", "edits", "runs", *fields, "energy_change", "seconds_per_edit", "folders"])
    for block in blocks(groups).values():
        if block[0].finished:
            first = block[0]
            writer.writerow([first.model, UNEDITED, 0, len(first.runs), *_numbers(first, "before"), "", "", ""])
        for group in block:
            ends = [_cell(group.energy_change.mean), _cell(group.seconds_per_edit.mean)]
            folders = " ".join(str(run.folder) for run in group.runs)
            start = [group.model, group.label, group.edits, len(group.runs)]
            writer.writerow([*start, *_numbers(group, "after"), *ends, folders])
    return text.getvalue()


def latex_table(groups: Sequence[Group]) -> str:
    """A booktabs table with standard errors as subscripts, as the paper sets them."""
    winners = best(groups)
    lines = [r"% needs \usepackage{booktabs}", r"\begin{tabular}{ll" + "r" * len(FIRST_RANK) + "}", r"\toprule"]
    titles = [
        label(metric).capitalize() + ("" if _more_is_better(metric) else r" $\downarrow$") for metric in FIRST_RANK
    ]
    lines.append(" & ".join(["Model", "Method", *titles]) + r" \\")
    for (model, edits), block in blocks(groups).items():
        lines.append(r"\midrule")
        name = latex_text(f"{model} ({counted(edits, 'edit')})".strip())
        if block[0].finished:
            lines.append(_latex_row([name, UNEDITED.capitalize()], block[0], "before", {}))
            name = ""
        for group in block:
            lines.append(_latex_row([name, latex_text(group.label)], group, "after", winners))
            name = ""
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def latex_text(text: str) -> str:
    r"""Escape what LaTeX would read as a command.

    Example:
        >>> latex_text("a_b & 50%")
        'a\\_b \\& 50\\%'
    """
    return "".join(_SPECIAL.get(character, character) for character in text)


def _html_name(group: Group) -> Html:
    note = f"mean of {len(group.runs)} runs" if len(group.runs) > 1 else "" if group.finished else "still running"
    return escape(group.label) + (f"<small>{note}</small>" if note else "")


def _html_row(name: Html, group: Group, when: str, winners: dict[tuple[str, str], bool]) -> Html:
    cells = [name]
    for metric in FIRST_RANK:
        text = escape(_text(metric, group.estimate(metric, when)))
        cells.append(f"<b>{text}</b>" if winners.get((group.label, metric)) else text)
    if when == "after":
        cells += [signed_percent(group.energy_change.mean), duration(group.seconds_per_edit.mean)]
    else:
        cells += ["", ""]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _more_is_better(metric: str) -> bool:
    row = metric_of(metric)
    return row is None or row.higher_is_better


def _text(metric: str, found: Estimate) -> str:
    if is_share(metric):
        return percent(*found).removesuffix(" %")
    return plain(found.mean) + (f" ± {found.error:.2g}" if math.isfinite(found.error) else "")


def _latex_row(start: list[str], group: Group, when: str, winners: dict[tuple[str, str], bool]) -> str:
    cells = [_latex_cell(m, group.estimate(m, when), bool(winners.get((group.label, m)))) for m in FIRST_RANK]
    return " & ".join([*start, *cells]) + r" \\"


def _latex_cell(metric: str, found: Estimate, winner: bool) -> str:
    mean, _, error = _text(metric, found).partition(" ± ")
    if not math.isfinite(found.mean):
        return r"$\infty$" if math.isinf(found.mean) else "--"
    mean = mean.replace(",", "{,}")
    spread = rf"_{{\pm {error}}}" if error else ""
    return rf"$\mathbf{{{mean}}}{spread}$" if winner else f"${mean}{spread}$"


def _numbers(group: Group, when: str) -> list[str]:
    return [_cell(value) for metric in FIRST_RANK for value in group.estimate(metric, when)]


def _cell(value: float) -> str:
    return "" if math.isnan(value) else repr(float(value))
