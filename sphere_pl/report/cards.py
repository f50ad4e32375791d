"""The cards of a report that show figures, and why one is left out."""

import math
from html import escape
from typing import NamedTuple, TypeAlias

from sphere_pl.evaluation.metrics.table import ACCURACIES
from sphere_pl.report import families, figures
from sphere_pl.report.correlations import Correlation, RankCorrelation, correlations
from sphere_pl.report.drawing import Drawing
from sphere_pl.report.html import Html, figure, grid, missing, section, table
from sphere_pl.report.reading import RunData, number
from sphere_pl.report.style import label, signed, signed_percent
from sphere_pl.text.numbers import percent

_TREND = 3  # validations
ONE_POINT = "One point is no curve: there was one validation, or one batch."
TOO_SHORT = "This needs at least four validations with an energy measurement between them; the run has fewer so far."


class Absent(NamedTuple):
    """A card that is left out, since it would show nothing.

    Attributes:
        title: Its title.
        reason: Why.
    """

    title: str
    reason: str


Card: TypeAlias = Html | Absent


def figure_cards(run: RunData) -> list[Card]:
    """All of them in the report's order; an empty text where nothing of the kind was measured."""
    return [
        _accuracy(run),
        _retention(run),
        _protocols(run),
        _energy(run),
        _trends(run, correlations(run)),
        _changes(run),
        _drift(run),
        _abilities(run),
        _projection(run),
        _cost(run),
    ]


def _accuracy(run: RunData) -> Card:
    caption = (
        "A falling efficacy on all edits while the batch just edited stays high is forgetting; if both fall, new edits "
        "no longer take." + (" Dotted lines: the unedited model." if run.results.get("before") else "")
    )
    absent = "No validation has been logged yet."
    return _plotted("Do the edits last?", caption, "accuracy", figures.accuracy_figure(run), absent)


def _retention(run: RunData) -> Card:
    caption = (
        "Accuracy by age: the first third of the edits, the second, the last. Curves that part show which edits are "
        "forgotten first."
    )
    return _family("How old edits fare", caption, "retention", families.retention_figures(run), wide=True)


def _protocols(run: RunData) -> Card:
    caption = (
        "Teacher forcing shows the model the right tokens so far; comparing the probabilities of old and new answer "
        "and letting the model generate are stricter or looser readings of the same edits."
    )
    drawn = families.protocol_figures(run) | families.further_figures(run)
    return _family("Scored in other ways", caption, "protocol", drawn)


def _drift(run: RunData) -> Card:
    caption = "The edited model against the unedited one, on held-out text that no edit is about."
    return _family("Drift", caption, "drift", families.drift_figures(run), wide=True)


def _abilities(run: RunData) -> Html:
    found = run.results.get("abilities") or {}
    drawn = families.ability_figure(run)
    if drawn is None and not found:
        return ""
    caption = "What the model can still do besides its edits, in per cent, ± one standard error over items."
    parts = [] if drawn is None else [figure("abilities", drawn, "")]
    if found:
        rows = [_ability_row(task, each) for task, each in found.items()]
        parts.append(table(("task", "before", "after", "change", "items"), rows))
    return section("General abilities", caption, *parts)


def _ability_row(task: str, found: dict[str, float]) -> tuple[Html, ...]:
    before, after = number(found.get("before")), number(found.get("after"))
    error = number(found.get("standard_error"))
    cells = (percent(before), percent(after, error), signed_percent(after - before, 1))
    items = found.get("items")
    shown = (cell.removesuffix(" %") for cell in cells)
    return escape(label(task)), *shown, "–" if items is None else f"{int(items):,}"


def _family(title: str, caption: str, kind: str, drawn: dict[str, Drawing], wide: bool = False) -> Card:
    """A card of small figures that show something; nothing if none was drawn."""
    seen = {name: each for name, each in drawn.items() if each.points > 1}
    cells = [(label(name), figure(f"{kind}-{place}", each, "")) for place, (name, each) in enumerate(seen.items())]
    if cells:
        return section(title, caption, grid(cells, wide))
    return Absent(title, ONE_POINT) if drawn else ""


def _energy(run: RunData) -> Card:
    caption = (
        "Above: change of the hyperspherical energy of each edited matrix (thin) and their mean (thick) since the "
        "start; away from 0 %, rows have turned towards or away from each other. Below: perplexity on unrelated text, "
        "on a logarithmic axis once it has grown eightfold."
    )
    if not run.finished:
        caption += " Until the run has finished, thin lines start at their first measurement."
    absent = "Neither energy nor perplexity has been logged: add the HypersphericalEnergy callback."
    return _plotted("Energy and perplexity", caption, "energy", figures.energy_figure(run), absent)


def _trends(run: RunData, found: dict[str, Correlation]) -> Card:
    caption = (
        "The form of the paper's Fig. 2: Spearman's ρ between energy and metric stands at the end of each curve. Two "
        "series that both drift with the edits always correlate, whatever causes them; the ρ of consecutive "
        "differences in the table is the honest number (small print: 95 % interval; p and points belong to the "
        "differences)."
    )
    title, absent = "Energy against metrics", "Energy and metrics have not both been logged yet."
    drawn = figures.trend_figure(run, found)
    if drawn is not None and max(len(run.series(f"val/{metric}").edits) for metric in ACCURACIES) < _TREND:
        return Absent(title, TOO_SHORT)
    return _plotted(title, caption, "trends", drawn, absent, correlation_table(found) if found else missing(TOO_SHORT))


def _changes(run: RunData) -> Card:
    caption = (
        "The form of the paper's Fig. 3: each point is the change between two validations, with the regression line "
        "and the ellipse that holds 95 % of a normal distribution with the same spread. A flat line or an upright, "
        "round ellipse says that changes of the energy do not tell changes of the metric."
    )
    drawn = [
        (label(metric), figure(f"change-{metric}", each, "")) for metric, each in figures.change_figures(run).items()
    ]
    title = "Changes of energy, changes of metrics"
    return section(title, caption, grid(drawn)) if drawn else Absent(title, TOO_SHORT)


def _projection(run: RunData) -> Card:
    drawn = figures.projection_figure(run)
    if drawn is None:
        return ""
    caption = (
        "Share of each update's squared norm in the principal directions of its weight, before the projection; near "
        "the dotted line, updates prefer them no more than random ones would, and there is little to remove."
    )
    return _plotted("Updates and principal directions", caption, "projection", drawn, "")


def _cost(run: RunData) -> Card:
    drawn: list[tuple[str, str, Drawing | None]] = [
        ("Seconds a batch", "seconds", figures.seconds_figure(run)),
        ("Target probability", "target", figures.target_figure(run)),
    ]
    cells = [(title, figure(name, each, "")) for title, name, each in drawn if each is not None and each.points > 1]
    if not cells:
        return Absent("Time and targets", ONE_POINT) if any(each for _, _, each in drawn) else ""
    caption = (
        "Seconds a batch: time of each batch's edit, without validation. Target probability: the new answer's mean "
        "probability when its target value was found; if it falls, the optimisation fails before any weight changes."
    )
    return section("Time and targets", caption, grid(cells))


def _plotted(title: str, caption: str, name: str, drawn: Drawing | None, absent: str, *html: Html) -> Card:
    """A card with one figure, unless there is nothing to be seen in it."""
    if drawn is None:
        return Absent(title, absent)
    if drawn.points < 2:
        return Absent(title, ONE_POINT)
    return section(title, caption, figure(name, drawn, absent), *html)


def correlation_table(found: dict[str, Correlation]) -> Html:
    """Spearman's coefficients of levels and differences, with their intervals."""
    head = ("metric", "ρ of levels", "ρ of differences", "p", "points")
    rows = [
        (
            escape(label(metric)),
            coefficient(each.levels),
            coefficient(each.differences),
            _p_value(each.differences.p),
            str(each.differences.n or "–"),
        )
        for metric, each in found.items()
    ]
    return table(head, rows)


def coefficient(found: RankCorrelation) -> Html:
    """A coefficient with its interval below it."""
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return signed(found.rho)
    return f"{signed(found.rho)}<small>{signed(found.low)} to {signed(found.high)}</small>"


def _p_value(p: float) -> Html:
    if not math.isfinite(p):
        return "–"
    return f"{p:.3f}" if p >= 0.001 else "&lt; 0.001"
