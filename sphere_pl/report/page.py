"""The report of one run."""

import math
from collections.abc import Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import NamedTuple, TypeAlias

from sphere_pl.evaluation.metrics.table import ACCURACIES, FIRST_RANK, PROTOCOLS, is_share, metric_of
from sphere_pl.report import families, figures
from sphere_pl.report.collapse import BOUND, collapse
from sphere_pl.report.drawing import Drawing
from sphere_pl.report.facts import FAILED_SHOWN, cases, failures, opening
from sphere_pl.report.html import Html, figure, fold, grid, missing, page, section, table, tile
from sphere_pl.report.reading import Correlation, RankCorrelation, RunData, correlations, number, read_run
from sphere_pl.report.style import label, score, signed, signed_percent
from sphere_pl.report.verdict import summary
from sphere_pl.storage.files import write_text
from sphere_pl.text.numbers import counted, difference, duration, memory, percent, total, typeset

__all__ = ["FAILED_SHOWN", "REFRESH", "write_report"]

REFRESH = 30  # seconds
_TREND = 3  # validations
ONE_POINT = "One point is no curve: there was one validation, or one batch."
TOO_SHORT = "This needs at least four validations with an energy measurement between them; the run has fewer so far."


def write_report(run_dir: Path, live: bool = True) -> Path:
    """Write `report.html` into a run folder, whether the run has finished or not.

    Args:
        run_dir: The run folder.
        live: Whether an unfinished run continues, so that its page loads itself again.

    Returns:
        The path of the report.

    Raises:
        UserError: If the folder is no run folder or cannot be written to.
    """
    run = read_run(run_dir)
    path = run.folder / "report.html"
    title = f"{run.method} · {run.model}" if run.model else run.method
    live = live and not run.finished
    write_text(path, page(title, body(run, live), refresh=REFRESH if live else None))
    return path


def body(run: RunData, live: bool) -> Html:
    """The report between `<body>` and `</body>`, without scripts that draw it."""
    found = correlations(run)
    cards = [
        *opening(run),
        _before_after(run),
        _accuracy(run),
        _retention(run),
        _protocols(run),
        _energy(run),
        _trends(run, found),
        _changes(run),
        _drift(run),
        _abilities(run),
        _projection(run),
        _cost(run),
        cases(run),
        "" if run.results.get("facts") else failures(run),
    ]
    shown = [card for card in cards if isinstance(card, str)]
    absent = [card for card in cards if isinstance(card, Absent)]
    parts = [_summary(run), _tiles(run), *shown, _details(run, absent)]
    return _header(run, live) + "<main>" + "".join(parts) + "</main>" + footer()


def _summary(run: RunData) -> Html:
    said = summary(run.results)
    return f'<p class="summary">{escape(said)}</p>' if said else ""


class Absent(NamedTuple):
    """A card that is left out, since it would show nothing.

    Attributes:
        title: Its title.
        reason: Why.
    """

    title: str
    reason: str


Card: TypeAlias = Html | Absent


def _plotted(title: str, caption: str, name: str, drawn: Drawing | None, absent: str, *html: Html) -> Card:
    """A card with one figure, unless there is nothing to be seen in it."""
    if drawn is None:
        return Absent(title, absent)
    if drawn.points < 2:
        return Absent(title, ONE_POINT)
    return section(title, caption, figure(name, drawn, absent), *html)


def footer() -> Html:
    """What stands below every report."""
    return (
        "<footer>Made by sphere_pl. This file holds its data and all it needs to draw them; it loads nothing from the "
        "network. Click a name in a legend to hide its curve, drag across a figure to zoom, double-click to go back."
        "</footer>"
    )


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


def _header(run: RunData, live: bool) -> Html:
    kind, word = ("finished", "finished") if run.finished else ("running", "running" if live else "stopped")
    state = f'<span class="state {kind}">{word}</span>'
    written = datetime.fromtimestamp(run.updated).astimezone().strftime("%d %B %Y, %H:%M:%S")
    seed = run.results.get("seed")
    facts = [
        run.model,
        counted(run.edits, "edit") if run.edits else "no edits logged yet",
        "" if seed is None else f"seed {seed}",
        f"folder {run.folder.resolve().name}",
        f"data of {written}" + (f", loads again every {REFRESH} s" if live else ""),
    ]
    line = "".join(f"<span>{escape(fact)}</span>" for fact in facts if fact)
    return (
        f'<header><p class="eyebrow">Sequential knowledge editing</p><h1>{escape(run.method)}{state}</h1>'
        f'<p class="facts">{line}</p></header>'
    )


def _tiles(run: RunData) -> Html:
    metrics = [
        tile(label(metric), score(metric, run.after(metric)), _was(run, metric), _arrow(run, metric))
        for metric in FIRST_RANK
        if math.isfinite(run.after(metric)) or math.isinf(run.after(metric))
    ]
    return '<div class="tiles">' + "".join([*metrics, *_collapse_tile(run), *_cost_tiles(run)]) + "</div>"


def _arrow(run: RunData, metric: str) -> Html:
    """The change of a metric, with an arrow and a colour that says whether it is for the better."""
    before, after = run.before(metric), run.after(metric)
    shown = _difference(metric, before, after)
    if not (math.isfinite(before) and math.isfinite(after)) or not any(digit in shown for digit in "123456789"):
        return ""
    row = metric_of(metric)
    better = (after > before) == (row is None or row.higher_is_better)
    sign = "↑" if after > before else "↓"
    return f'<span class="{"good" if better else "bad"}">{sign} {escape(shown.lstrip("+−"))}</span>'


def _collapse_tile(run: RunData) -> list[Html]:
    found = collapse(run)
    return [] if found is None else [tile("collapsed", f"at {found.edits:,}", f"edits: efficacy below {BOUND:.0%}")]


def _was(run: RunData, metric: str) -> str:
    before = run.before(metric)
    if math.isfinite(before):
        return f"before: {score(metric, before)}"
    row = metric_of(metric)
    return "" if row is None else row.scope


def _cost_tiles(run: RunData) -> list[Html]:
    energy, seconds = run.series("energy/change").values, run.series("time/seconds").values
    whole = number(run.results.get("seconds_total"))
    tiles = []
    if energy:
        tiles.append(tile("energy", signed_percent(energy[-1]), "mean change since start"))
    if math.isfinite(number(run.results.get("seconds_per_edit"))):
        tiles.append(tile("time per edit", duration(run.results["seconds_per_edit"]), f"{duration(whole)} in all"))
    elif seconds:
        tiles.append(tile("time per batch", duration(sum(seconds) / len(seconds)), "mean so far"))
    if math.isfinite(number(run.results.get("peak_memory_bytes"))):
        tiles.append(tile("peak memory", memory(run.results["peak_memory_bytes"])))
    return tiles


def _before_after(run: RunData) -> Html:
    caption = (
        "Means over all edits in per cent, ± one standard error over edited records; changes in percentage points. "
        "What is no share stands as it is, and so does its change; perplexity's is in per cent."
    )
    asked = [each for each in PROTOCOLS if each.prefix and any(name.startswith(each.prefix) for name in _measured(run))]
    caption += "".join(f" {each.label.capitalize()}: {each.meaning}." for each in asked)
    if not run.finished:
        return section("Before and after", "", missing("The table appears when the run has finished."))
    rows = [
        (
            f"{escape(label(metric))}<small>{escape(_meaning(run, metric))}</small>",
            *(_spread(score(metric, *pair).removesuffix(" %")) for pair in _means(run, metric)),
            _colored(run, metric),
        )
        for metric in _measured(run)
    ]
    return section("Before and after", caption, table(("", "before", "after", "change"), rows))


def _measured(run: RunData) -> list[str]:
    """The paper's metrics first, then what other protocols and measures have added to the results."""
    names = dict.fromkeys((*FIRST_RANK, *run.scores("after")))
    return [name for name in names if not (math.isnan(run.before(name)) and math.isnan(run.after(name)))]


def _spread(shown: str) -> Html:
    """A mean with its error, which a phone shows below it."""
    mean, sign, error = shown.partition(" ± ")
    return f'{mean}<span class="error"> ± {error}</span>' if sign else mean


def _colored(run: RunData, metric: str) -> Html:
    """The change of a metric, coloured as its arrow is."""
    shown, arrow = _difference(metric, run.before(metric), run.after(metric)), _arrow(run, metric)
    kind = "good" if 'class="good"' in arrow else "bad" if 'class="bad"' in arrow else ""
    return f'<span class="{kind}">{shown}</span>' if kind else shown


def _meaning(run: RunData, metric: str) -> str:
    """What a metric counts."""
    row = metric_of(metric)
    if metric.endswith("_magnitude"):
        return "difference of the two answers' probabilities"
    made = (run.results.get("made_neighbors") or {}).get("records")
    if metric == "neighborhood_agreement" and made:
        return (
            f"{row.meaning}; {counted(made, 'record')} gave none: prompts with other subjects"
            if row is not None
            else ""
        )
    return "" if row is None or row.name != metric else row.meaning


def _means(run: RunData, metric: str) -> list[tuple[float, float]]:
    """A metric before and after, each with its standard error."""
    before = run.before(metric), run.standard_error(metric, "before")
    return [before, (run.after(metric), run.standard_error(metric))]


def _difference(metric: str, before: float, after: float) -> Html:
    if is_share(metric):
        return signed_percent(after - before, 1).removesuffix(" %")
    row = metric_of(metric)
    if row is not None and row.is_relative:
        return signed_percent(after / before - 1, 0) if before else "–"
    return typeset(difference(after - before))


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


def _details(run: RunData, absent: Sequence[Absent]) -> Html:
    energies = run.results.get("hyperspherical_energy") or {}
    versions = run.results.get("versions") or {}
    folds = []
    if absent:
        rows = [(escape(each.title), escape(each.reason)) for each in absent]
        folds.append(fold("Left out", table(("panel", "why"), rows, "text")))
    others = {name: each for name, each in families.other_figures(run).items() if each.points > 1}
    if others:
        cells = [(label(name), figure(f"other-{place}", each, "")) for place, (name, each) in enumerate(others.items())]
        folds.append(fold("Everything else that was logged", grid(cells)))
    if energies:
        folds.append(fold("Energy of each matrix", _energy_table(energies)))
    if versions:
        rows = [(escape(str(name)), escape(str(version))) for name, version in versions.items()]
        folds.append(fold("Versions", table(("package", "version"), rows)))
    if run.config:
        folds.append(fold("Configuration", f"<pre>{escape(run.config)}</pre>"))
    return section("Details", "", *folds) if folds else ""


def _energy_table(energies: dict[str, dict[str, float]]) -> Html:
    rows = []
    for name, each in energies.items():
        before, after = number(each.get("before")), number(each.get("after"))
        change = signed_percent((after - before) / abs(before)) if before else "–"
        rows.append((escape(name), total(before), total(after), change))
    return table(("parameter", "before", "after", "change"), rows)
