"""The figures of one run: pure functions from what was logged to plotly figures.

Shapes and words only: background, text and grid colours are set by `page.js`, which knows whether the reader's screen
is light or dark and how wide it is.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sphere_pl.evaluation.metrics.table import ACCURACIES, FIRST_RANK, is_share
from sphere_pl.report.correlations import Correlation
from sphere_pl.report.drawing import Drawing, Trace
from sphere_pl.report.fits import MIN_POINTS, Changes, changes, confidence_ellipse, regression_line
from sphere_pl.report.reading import RunData, Series, number
from sphere_pl.report.style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    METRIC_COLORS,
    METRIC_SYMBOLS,
    PURPLE,
    VERMILLION,
    label,
    short_names,
    signed,
)

PERCENT = "%{y:.1%}"
PLAIN = "%{y:.4~g}"
_EARLY = 0.2  # of the run


def curve(series: Series, name: str, color: str, hover: str = PLAIN, **options: Any) -> Trace:
    """A line through a column, as a trace."""
    line = {"color": color, "width": options.pop("width", 2.2), "dash": options.pop("dash", "solid")}
    marker = {"size": options.pop("size", 6), "symbol": options.pop("symbol", "circle"), "color": color}
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(series.edits) <= 60 else "lines",
        "x": series.edits,
        "y": series.values,
        "name": name,
        "line": line,
        "marker": marker,
        "hovertemplate": hover,
        **options,
    }


def metric_curve(series: Series, metric: str, **options: Any) -> Trace:
    """The curve of a metric in its colour and symbol."""
    hover = PERCENT if is_share(metric) else PLAIN
    return curve(series, label(metric), METRIC_COLORS[metric], hover, symbol=METRIC_SYMBOLS[metric], **options)


def accuracy_figure(run: RunData) -> Drawing | None:
    """Accuracies over all edits so far, the unedited model's as dotted lines, the latest batch's efficacy faintly."""
    shown = [metric for metric in ACCURACIES if run.series(f"val/{metric}").edits]
    if not shown:
        return None
    figure = Drawing(400, run.progress)
    for metric in shown:
        series = run.series(f"val/{metric}")
        # A curve begins at the unedited model where the first validation is early; else it would read as learning.
        early = series.edits[0] <= _EARLY * series.edits[-1]
        begun = series.starting_at(run.before(metric)) if early else series
        figure.add(metric_curve(begun, metric, legendgroup=metric))
        if math.isfinite(run.before(metric)):
            figure.add(_level(run.before(metric), series.edits[-1], metric))
    batch = run.series("batch/efficacy")
    if batch.edits:
        figure.add(curve(batch, "efficacy, latest batch", BLUE, PERCENT, width=1.4, size=5, opacity=0.6, dash="dash"))
    figure.axis("y", tickformat=".0%", range=[-0.03, 1.04])
    return figure


def energy_changes(run: RunData) -> dict[str, Series]:
    """Relative change of each matrix's energy since the start, by parameter name.

    The start is the unedited weight's energy, known when the run has finished, and the first measurement until then.
    """
    start = run.results.get("hyperspherical_energy") or {}
    found = {}
    for column, series in run.columns.items():
        name = column.removeprefix("energy/")
        if column.startswith("energy/") and name not in {"mean", "change", "step_change"}:
            first = number((start.get(name) or {}).get("before"))
            known = math.isfinite(first) and first != 0
            base = first if known else series.values[0] or 1.0
            change = Series(series.edits, tuple((value - base) / abs(base) for value in series.values))
            found[name] = change.starting_at(0.0 if known else math.nan)
    return found


def mean_energy_change(run: RunData) -> Series:
    """Mean over matrices of the relative change of the energy, from 0 at 0 edits on."""
    return run.series("energy/change").starting_at(0.0)


def energy_figure(run: RunData) -> Drawing | None:
    """Relative change of the energy above the perplexity, on one x axis."""
    matrices, mean = energy_changes(run), mean_energy_change(run)
    perplexity = run.series("val/perplexity").starting_at(run.before("perplexity"))
    if not (matrices or mean.edits or perplexity.edits):
        return None
    figure = Drawing(520, run.progress, panels=2)
    figure.add(*_matrix_traces(matrices))
    if mean.edits:
        figure.add(curve(mean, "mean over matrices", INK, "%{y:+.3%}", width=3, size=5))
    if perplexity.edits:
        figure.add(metric_curve(perplexity, "perplexity"), axis="y2")
    figure.axis("y", "energy, change", tickformat=".2~p")
    figure.axis("y2", "perplexity", type=axis_type(perplexity.values))
    return figure


def _matrix_traces(matrices: Mapping[str, Series]) -> list[Trace]:
    """A thin line for each matrix; the legend has one entry for all of them."""
    options: dict[str, Any] = {"mode": "lines", "width": 1.2, "opacity": 0.75, "legendgroup": "matrices"}
    traces = [
        curve(series, short, FAINT, "%{y:+.3%}", showlegend=False, **options)
        for short, series in zip(short_names(list(matrices)), matrices.values(), strict=True)
    ]
    legend = curve(Series((), ()), "each matrix", FAINT, **options) | {"x": [None], "y": [None]}
    return [*traces, legend] if traces else []


def axis_type(values: Sequence[float]) -> str:
    """Logarithmic for positive values that differ by more than a factor of 8.

    Example:
        >>> axis_type([20.0, 25.0]), axis_type([20.0, 2500.0])
        ('linear', 'log')
    """
    finite = [value for value in values if math.isfinite(value)]
    return "log" if finite and min(finite) > 0 and max(finite) > 8 * min(finite) else "linear"


def trend_figure(run: RunData, found: Mapping[str, Correlation], compact: bool = False) -> Drawing | None:
    """Energy and metrics against edits, Spearman's coefficient of the levels at the end of each curve (Fig. 2).

    Args:
        run: The run.
        found: Correlations by metric.
        compact: Whether to draw for half the page's width.
    """
    shown = [metric for metric in ACCURACIES if run.series(f"val/{metric}").edits]
    energy = mean_energy_change(run)
    if not shown or not energy.edits:
        return None
    figure = Drawing(360 if compact else 400, run.progress, right_axis=True)
    for metric in shown:
        figure.add(metric_curve(run.series(f"val/{metric}"), metric))
    figure.add(curve(energy, "energy (right axis)", INK, "%{y:+.3%}", mode="lines", dash="dash"), axis="y2")
    last = max(energy.edits[-1], *(run.series(f"val/{metric}").edits[-1] for metric in shown))
    ends = {metric: run.series(f"val/{metric}").values[-1] for metric in shown if metric in found}
    for metric, height in spread(ends, gap=0.1 if compact else 0.075).items():
        figure.note(**_end_label(found[metric], last, height, METRIC_COLORS[metric]))
    # Room for the labels at the right; page.js takes the wider one on a phone.
    narrow, usual = (1.32, 1.27 if compact else 1.12) if ends else (1.02, 1.02)
    figure.layout["meta"] = {"narrow_range": [0, last * narrow]}
    figure.axis("x", range=[0, last * usual])
    figure.axis("y", tickformat=".0%", range=[-0.03, 1.06])
    figure.axis("y2", tickformat=".2~p", showgrid=False, tickmode="auto", nticks=6)
    return figure


def spread(heights: Mapping[str, float], gap: float) -> dict[str, float]:
    """Move labels apart so that neighbours are at least `gap` apart and none is below `gap / 2`, keeping their order.

    Example:
        >>> spread({"a": 0.5, "b": 0.5, "c": 0.9}, gap=0.1)
        {'a': 0.45, 'b': 0.55, 'c': 0.9}
    """
    groups: list[list[str]] = []
    for name in sorted((name for name in heights if math.isfinite(heights[name])), key=lambda name: heights[name]):
        groups.append([name])
        while len(groups) > 1 and _bottom(groups[-1], heights, gap) < _top(groups[-2], heights, gap) + gap - 1e-9:
            groups[-2:] = [groups[-2] + groups[-1]]
    return {
        name: round(_bottom(group, heights, gap) + place * gap, 6)
        for group in groups
        for place, name in enumerate(group)
    }


def change_figures(run: RunData) -> dict[str, Drawing]:
    """For each metric, its consecutive changes against those of the energy, with line and ellipse (Fig. 3)."""
    clouds = {metric: changes(run.series("energy/change"), run.series(f"val/{metric}")) for metric in FIRST_RANK}
    return {metric: _cloud_figure(cloud, metric) for metric, cloud in clouds.items() if len(cloud.x) + 1 >= MIN_POINTS}


def cloud_blank(metric: str, height: int = 330) -> Drawing:
    """An empty figure for changes of the energy and of a metric."""
    figure = Drawing(height, "Δ energy")
    shares = is_share(metric)
    figure.layout |= {"hovermode": "closest", "showlegend": False}
    figure.axis("x", tickformat=".2~p", zeroline=True, nticks=5, tickangle=0)
    figure.axis("y", f"Δ {label(metric)}", tickformat=".1~%" if shares else "~s", zeroline=True)
    return figure


def cloud_traces(cloud: Changes, name: str, color: str, symbol: str = "circle") -> list[Trace]:
    """The points of a cloud and the ellipse around them, as traces."""
    markers = {"size": 8, "color": color, "symbol": symbol, "opacity": 0.75}
    hover = f"{name}<br>up to %{{customdata:,.0f}} edits<br>Δ energy %{{x:+.3~%}}<br>Δ %{{y:+.3~g}}<extra></extra>"
    points = {"type": "scatter", "mode": "markers", "x": cloud.x, "y": cloud.y, "name": name, "marker": markers}
    traces: list[Trace] = [points | {"customdata": cloud.edits, "hovertemplate": hover, "legendgroup": name}]
    ellipse = confidence_ellipse(cloud.x, cloud.y)
    if ellipse is not None:
        line = {"color": color, "width": 1.5, "dash": "dot"}
        outline = {"type": "scatter", "mode": "lines", "x": ellipse.x, "y": ellipse.y, "line": line, "opacity": 0.85}
        traces.append(outline | {"name": "95 % ellipse", "hoverinfo": "skip", "showlegend": False, "legendgroup": name})
    return traces


def line_trace(x: Sequence[float], y: Sequence[float], color: str = INK) -> list[Trace]:
    """The regression line over the width of some points, as at most one trace."""
    line = regression_line(x, y)
    if line is None:
        return []
    ends = [min(x), max(x)]
    heights = [line.intercept + line.slope * end for end in ends]
    style = {"color": color, "width": 2}
    trace = {"type": "scatter", "mode": "lines", "x": ends, "y": heights, "line": style, "name": "regression line"}
    return [trace | {"hoverinfo": "skip", "showlegend": False}]


def projection_figure(run: RunData) -> Drawing | None:
    """Share of each update in the principal directions, what chance would put there, and what was removed."""
    kinds = (
        ("in_principal", "in principal directions", BLUE, "solid", "circle"),
        ("removed", "removed by the projection", VERMILLION, "solid", "diamond"),
        ("chance", "chance", INK, "dot", "circle"),
    )
    shown = [kind for kind in kinds if run.series(f"projection/{kind[0]}").edits]
    if not shown:
        return None
    figure = Drawing(330, run.progress)
    for name, words, color, dash, symbol in shown:
        figure.add(curve(run.series(f"projection/{name}"), words, color, "%{y:.2%}", dash=dash, symbol=symbol, size=5))
    figure.axis("y", "share of ‖Δ‖²", tickformat=".2~%", rangemode="tozero")
    return figure


def seconds_figure(run: RunData) -> Drawing | None:
    """Seconds that each batch's edit took."""
    return _single(run, "time/seconds", "seconds", GREEN, "seconds a batch", "%{y:.3~g} s", "")


def target_figure(run: RunData) -> Drawing | None:
    """Mean probability of the new answers when their target values were found."""
    return _single(run, "target/probability", "probability", PURPLE, "target probability", PERCENT, ".0%")


def _level(value: float, last: float, metric: str) -> Trace:
    series = Series((0.0, last), (value, value))
    options: dict[str, Any] = {"mode": "lines", "dash": "dot", "width": 1.3, "opacity": 0.7, "showlegend": False}
    return curve(series, f"{label(metric)}, unedited", METRIC_COLORS[metric], hoverinfo="skip", **options) | {
        "hovertemplate": None,
        "legendgroup": metric,
    }


def _bottom(group: Sequence[str], heights: Mapping[str, float], gap: float) -> float:
    return max(gap / 2, sum(heights[name] for name in group) / len(group) - gap * (len(group) - 1) / 2)


def _top(group: Sequence[str], heights: Mapping[str, float], gap: float) -> float:
    return _bottom(group, heights, gap) + gap * (len(group) - 1)


def _end_label(found: Correlation, x: float, y: float, color: str) -> Trace:
    font = {"color": color, "size": 13}
    place = {"x": x, "y": y, "xref": "x", "yref": "y", "xanchor": "left", "yanchor": "middle", "xshift": 5}
    return place | {"text": f"ρ {signed(found.levels.rho)}", "showarrow": False, "font": font}


def _cloud_figure(cloud: Changes, metric: str) -> Drawing:
    figure = cloud_blank(metric)
    figure.add(*cloud_traces(cloud, label(metric), METRIC_COLORS[metric], METRIC_SYMBOLS[metric]))
    figure.add(*line_trace(cloud.x, cloud.y))
    return figure


def _single(
    run: RunData, column: str, name: str, color: str, title: str, hover: str, tickformat: str
) -> Drawing | None:
    series = run.series(column)
    if not series.edits:
        return None
    figure = Drawing(290, run.progress)
    figure.add(curve(series, escape(name), color, hover, showlegend=False, size=5))
    figure.axis("y", title, tickformat=tickformat, rangemode="tozero")
    return figure
