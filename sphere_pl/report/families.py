"""Figures of the series that only some runs log: other protocols, retention, drift, general abilities, and the rest.

Each function draws what is there and leaves out what is not, so a report grows with what a run measures.
"""

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from sphere_pl.evaluation.metrics.table import ACCURACIES, METRICS, PROTOCOLS, is_share
from sphere_pl.report.drawing import Drawing
from sphere_pl.report.figures import PERCENT, PLAIN, axis_type, curve
from sphere_pl.report.reading import RunData
from sphere_pl.report.style import BLUE, COLORS, METHOD_COLORS, PURPLE, SYMBOLS, VERMILLION, label

# Metrics that no other figure draws: perplexity stands below the energy.
FURTHER = tuple(metric.name for metric in METRICS if metric.name not in {*ACCURACIES, "perplexity"})
MOST_OTHERS = 40


class Line(NamedTuple):
    """One curve of a figure: the column it shows, its name and its look."""

    column: str
    name: str
    color: str
    dash: str = "solid"
    symbol: str = "circle"


_AGES = (
    ("earliest", VERMILLION, "solid", "diamond"),
    ("middle", PURPLE, "dash", "square"),
    ("latest", BLUE, "dot", "circle"),
)
# Drawn elsewhere in the report, or coordinates.
_SHOWN = ("val/", "batch/", "energy/", "retention/", "drift/", "abilities/", "spearman", "projection/", "time/seconds")
_SHOWN_NAMES = {"edits", "target/probability", "projection/rank"}


def protocol_figures(run: RunData) -> dict[str, Drawing]:
    """For each accuracy that was scored by more than teacher forcing, a curve for each protocol."""
    found = {}
    for metric in ACCURACIES:
        lines = [
            Line(f"val/{each.prefix}{metric}", each.label, COLORS[each.color], each.dash, each.symbol)
            for each in PROTOCOLS
        ]
        if any(run.series(line.column).edits for line in lines[1:]):
            found[metric] = lines_figure(run, lines)
    return _present(found)


def further_figures(run: RunData) -> dict[str, Drawing]:
    """Portability, fluency, consistency: metrics that the figures of accuracies and energy leave out."""
    return _singles(run, [f"val/{metric}" for metric in FURTHER])


def retention_figures(run: RunData) -> dict[str, Drawing]:
    """For each metric followed by age, its course on the earliest, middle and latest edits."""
    metrics = sorted({name.rpartition("/")[2] for name in run.columns if name.startswith("retention/")})
    lines = {
        metric: [Line(f"retention/{age}/{metric}", f"{age} edits", *look) for age, *look in _AGES] for metric in metrics
    }
    return _present({metric: lines_figure(run, each) for metric, each in lines.items()})


def drift_figures(run: RunData) -> dict[str, Drawing]:
    """How far the model has moved from the unedited one on held-out text."""
    return _singles(run, sorted(name for name in run.columns if name.startswith("drift/")))


def ability_figure(run: RunData) -> Drawing | None:
    """Accuracy on each task of general ability, the unedited model's at 0 edits."""
    columns = sorted(name for name in run.columns if name.startswith("abilities/"))
    return lines_figure(run, [Line(name, label(name), *_look(place)) for place, name in enumerate(columns)], height=380)


def other_figures(run: RunData) -> dict[str, Drawing]:
    """Whatever else was logged, a small figure each."""
    rest = sorted(name for name in run.columns if name not in _SHOWN_NAMES and not name.startswith(_SHOWN))
    return _singles(run, rest[:MOST_OTHERS])


def lines_figure(run: RunData, lines: Iterable[Line], height: int = 300) -> Drawing | None:
    """Draw those of some columns that were logged; none if none was."""
    shown = [line for line in lines if run.series(line.column).edits]
    if not shown:
        return None
    figure = Drawing(height, run.progress)
    shares = is_share(shown[0].column)
    values: list[float] = []
    for line in shown:
        series = run.series(line.column).starting_at(run.start(line.column))
        values += series.values
        look = {"dash": line.dash, "symbol": line.symbol}
        figure.add(curve(series, escape(line.name), line.color, PERCENT if shares else PLAIN, size=5, **look))
    figure.layout["showlegend"] = len(shown) > 1
    if shares:
        figure.axis("y", tickformat=".0%", range=[-0.03, 1.04])
    else:
        figure.axis("y", type=axis_type(values), exponentformat="power")
    return figure


def _singles(run: RunData, columns: Sequence[str]) -> dict[str, Drawing]:
    return _present({name: lines_figure(run, [Line(name, label(name), BLUE)], height=250) for name in columns})


def _present(drawn: dict[str, Drawing | None]) -> dict[str, Drawing]:
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _look(place: int) -> tuple[str, str, str]:
    return METHOD_COLORS[place % len(METHOD_COLORS)], "solid", SYMBOLS[place % len(SYMBOLS)]
