"""The report of several runs side by side."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from sphere_pl.errors import UserError
from sphere_pl.evaluation.metrics.table import ACCURACIES, FIRST_RANK
from sphere_pl.report import across
from sphere_pl.report.cards import coefficient
from sphere_pl.report.correlations import correlations
from sphere_pl.report.drawing import Drawing
from sphere_pl.report.groups import Group, blocks, group_runs
from sphere_pl.report.html import Html, figure, fold, grid, missing, page, section, table
from sphere_pl.report.page import REFRESH, footer
from sphere_pl.report.reading import read_run
from sphere_pl.report.style import label
from sphere_pl.report.tables import csv_table, html_table, latex_table
from sphere_pl.storage.files import write_text
from sphere_pl.text.numbers import counted

NAME = "comparison.html"


def write_comparison(run_dirs: Iterable[Path], out: Path) -> Path:
    """Compare runs: one HTML file, and its table beside it as CSV and LaTeX.

    Args:
        run_dirs: Run folders, finished or not; their order is the table's.
        out: The HTML file to write, or a folder for `comparison.html`.

    Returns:
        The path of the HTML file; the tables have the same name with `.csv` and `.tex`.

    Raises:
        UserError: If no folder was given, one is no run folder, or `out` cannot be written.
    """
    folders = list({Path(folder).resolve(): Path(folder) for folder in run_dirs}.values())
    if not folders:
        raise UserError(
            "There is nothing to compare: no run folder was given. Name two or more, such as runs/a runs/b."
        )
    groups = group_runs([read_run(folder) for folder in folders])
    path = out if out.suffix == ".html" else out / NAME
    finished = all(group.finished for group in groups)
    write_text(path.with_suffix(".csv"), csv_table(groups))
    write_text(path.with_suffix(".tex"), latex_table(groups))
    title = "Comparison: " + ", ".join(group.label for group in groups)
    write_text(path, page(title, body(groups, path.stem), refresh=None if finished else REFRESH))
    return path


def body(groups: Sequence[Group], stem: str) -> Html:
    """The comparison between `<body>` and `</body>`, without scripts that draw it."""
    names = ", ".join(dict.fromkeys(group.model for group in groups if group.model))
    count = sum(len(group.runs) for group in groups)
    facts = "".join(f"<span>{escape(fact)}</span>" for fact in (names, counted(count, "run")) if fact)
    head = (
        '<header><p class="eyebrow">Sequential knowledge editing</p><h1>Methods side by side</h1>'
        f'<p class="facts">{facts}</p></header>'
    )
    cards = [
        _table(groups, stem),
        _course(groups),
        _trends(groups),
        _changes(groups),
        _abilities(groups),
        _gains(groups),
    ]
    return head + '<main class="first">' + "".join(cards) + "</main>" + footer()


def legend(groups: Sequence[Group]) -> Html:
    """The groups' colours, once for all small figures below."""
    entries = [
        f'<span><i data-color="{color}" style="background:{color}"></i>{escape(name)}</span>'
        for name, color in ((group.label, group.look.color) for group in groups)
    ]
    return f'<p class="legend">{"".join(entries)}</p>'


def _table(groups: Sequence[Group], stem: str) -> Html:
    caption = (
        "The form of the paper's Table 1, in per cent, after all edits: mean ± standard error (over records for one "
        "run, over runs for several that differ by their seed). In bold stands the best of each model and count of "
        "edits with what is within a standard error of it, unless that is all. "
        f"{stem}.csv and {stem}.tex hold the same table."
    )
    warning = ""
    if len(blocks(groups)) > 1:
        warning = missing(
            "These runs differ in model or in how many edits were made: compare numbers only within a block."
        )
    latex = fold("LaTeX", f"<pre>{escape(latex_table(groups))}</pre>")
    return section("After all edits", caption, warning, html_table(groups), latex)


def _course(groups: Sequence[Group]) -> Html:
    caption = "Each metric over all edits so far: the later a curve falls, the longer a method can edit."
    drawn = across.course_figures(groups, [*(f"val/{metric}" for metric in ACCURACIES), "retention/earliest/efficacy"])
    absent = "No run has two validations yet."
    return _small("How long edits last", caption, groups, "course", drawn, absent, wide=True)


def _trends(groups: Sequence[Group]) -> Html:
    caption = (
        "The paper's Fig. 2 for each method: Spearman's ρ between energy and metric at the end of each curve, all "
        "energies on one scale. Two series that both drift with the edits always correlate; the table gives ρ of "
        "their consecutive differences, which is the honest number, with 95 % intervals."
    )
    absent = "No run has logged both energy and metrics twice."
    drawn = across.trend_figures(groups)
    cells = [(name, figure(f"trends-{place}", each, "")) for place, (name, each) in enumerate(drawn.items())]
    if not cells:
        return section("Energy against metrics", caption, missing(absent))
    return section("Energy against metrics", caption, grid(cells, wide=True), _correlations(groups))


def _correlations(groups: Sequence[Group]) -> Html:
    """Spearman's coefficients of the differences, for each group's first run."""
    found = {group.label: correlations(group.runs[0]) for group in groups}
    head = ("ρ of differences", *map(label, FIRST_RANK))
    rows = [
        (escape(name), *(coefficient(each[metric].differences) if metric in each else "–" for metric in FIRST_RANK))
        for name, each in found.items()
    ]
    return table(head, rows)


def _changes(groups: Sequence[Group]) -> Html:
    caption = (
        "The paper's Fig. 3: each point is the change between two consecutive validations, with a 95 % ellipse for "
        "each method and one regression line through all points; points near the origin are stable editing."
    )
    drawn = across.cloud_figures(groups)
    absent = "This needs at least four validations with an energy measurement between them."
    return _small("Changes of energy, changes of metrics", caption, groups, "change", drawn, absent)


def _abilities(groups: Sequence[Group]) -> Html:
    caption = (
        "The paper's Fig. 6: what the model can still do besides its edits, on tasks and as perplexity on other text."
    )
    drawn = across.course_figures(groups, across.ability_columns(groups))
    absent = "No run has logged perplexity or a task twice."
    return _small("General abilities", caption, groups, "ability", drawn, absent)


def _gains(groups: Sequence[Group]) -> Html:
    caption = "The paper's Fig. 7: each method alone and with SPHERE's projection added, bars with one standard error."
    absent = "This needs two finished runs that differ by SPHERE alone, such as MEMIT and MEMIT + SPHERE."
    drawn = across.gain_figures(groups)
    cells = [("", figure(f"gain-{name}", each, "")) for name, each in drawn.items()]
    return section("What SPHERE adds", caption, grid(cells, wide=True) if cells else missing(absent))


def _small(
    title: str,
    caption: str,
    groups: Sequence[Group],
    kind: str,
    drawn: dict[str, Drawing],
    absent: str,
    *,
    wide: bool = False,
) -> Html:
    """A section of small figures that share one legend."""
    cells = [(label(name), figure(f"{kind}-{place}", each, "")) for place, (name, each) in enumerate(drawn.items())]
    return section(title, caption, *((legend(groups), grid(cells, wide)) if cells else (missing(absent),)))
