"""The figures of a comparison: the paper's Figs. 2, 3, 6 and 7 for any set of runs."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from sphere_pl.evaluation.metrics.table import ACCURACIES, FIRST_RANK, is_share
from sphere_pl.report.correlations import correlations
from sphere_pl.report.drawing import Drawing
from sphere_pl.report.figures import (
    PERCENT,
    PLAIN,
    axis_type,
    cloud_blank,
    cloud_traces,
    curve,
    line_trace,
    mean_energy_change,
    trend_figure,
)
from sphere_pl.report.fits import MIN_POINTS, Changes, changes
from sphere_pl.report.groups import Group, pairs
from sphere_pl.report.reading import RunData
from sphere_pl.report.style import BLUE, FAINT, INK, label


def course_figures(groups: Sequence[Group], columns: Sequence[str]) -> dict[str, Drawing]:
    """For each column, its course in every run; repetitions share colour and name.

    A column of which no run has two values has none: a line from the unedited model would read as learning.
    """
    return {column: _course(groups, column) for column in columns if _logged(groups, column)}


def ability_columns(groups: Sequence[Group]) -> list[str]:
    """What was measured of the model's general abilities (Fig. 6): tasks, drift from the unedited model, perplexity."""
    names = {column for group in groups for run in group.runs for column in run.columns}
    return [*sorted(name for name in names if name.startswith(("abilities/", "drift/"))), "val/perplexity"]


def trend_figures(groups: Sequence[Group]) -> dict[str, Drawing]:
    """Energy and metrics of each group's first run, all energies on one scale (Fig. 2)."""
    found = {group.label: trend_figure(group.runs[0], correlations(group.runs[0]), compact=True) for group in groups}
    energies = [value for group in groups for value in mean_energy_change(group.runs[0]).values if math.isfinite(value)]
    drawn = {name: figure for name, figure in found.items() if figure is not None and figure.points > 2}
    for figure in drawn.values():
        low, high = min(energies), max(energies)
        room = 0.05 * (high - low) or 1e-4
        figure.axis("y2", range=[low - room, high + room])
    return drawn


def cloud_figures(groups: Sequence[Group]) -> dict[str, Drawing]:
    """Changes of each metric against changes of the energy, an ellipse for each group, one line for all (Fig. 3)."""
    drawn = {}
    for metric in FIRST_RANK:
        clouds = [(group, _cloud(group, metric)) for group in groups]
        points = [(x, y) for _, cloud in clouds for x, y in zip(cloud.x, cloud.y, strict=True)]
        if len(points) + 1 >= MIN_POINTS:
            figure = cloud_blank(metric)
            for group, cloud in clouds:
                figure.add(*cloud_traces(cloud, escape(group.label), group.look.color, group.look.symbol))
            figure.add(*line_trace([x for x, _ in points], [y for _, y in points]))
            drawn[metric] = figure
    return drawn


def gain_figures(groups: Sequence[Group]) -> dict[str, Drawing]:
    """Bars of each method without and with SPHERE, with standard errors (Fig. 7)."""
    found = pairs(groups)
    if not found:
        return {}
    return {metric: _bars(found, metric) for metric in ACCURACIES}


def _logged(groups: Sequence[Group], column: str) -> bool:
    return any(len(run.series(column).edits) > 1 for group in groups for run in group.runs)


def _course(groups: Sequence[Group], column: str) -> Drawing:
    figure = Drawing(300, groups[0].runs[0].progress)
    for group in groups:
        for run in group.runs:
            series = run.series(column).starting_at(run.start(column))
            if series.edits:
                options: dict[str, Any] = {"dash": group.look.dash, "symbol": group.look.symbol, "size": 5}
                hover = PERCENT if is_share(column) else PLAIN
                figure.add(curve(series, escape(group.label), group.look.color, hover, **options))
    figure.layout["showlegend"] = False
    if not is_share(column):
        values = [value for group in groups for run in group.runs for value in run.series(column).values]
        figure.axis("y", type=axis_type(values))
    else:
        figure.axis("y", tickformat=".0%", range=[-0.03, 1.04])
    return figure


def _cloud(group: Group, metric: str) -> Changes:
    clouds = [_changes(run, metric) for run in group.runs]
    return Changes(*([value for cloud in clouds for value in cloud[part]] for part in range(3)))


def _changes(run: RunData, metric: str) -> Changes:
    return changes(run.series("energy/change"), run.series(f"val/{metric}"))


def _bars(found: Sequence[tuple[Group, Group]], metric: str) -> Drawing:
    figure = Drawing(300, "")
    several = len({(plain.model, plain.edits) for plain, _ in found}) > 1
    names = [escape(f"{p.method} · {p.model} · {p.edits:,}" if several else p.method) for p, _ in found]
    for side, name, color in ((0, "without SPHERE", FAINT), (1, "with SPHERE", BLUE)):
        estimates = [pair[side].estimate(metric) for pair in found]
        errors = [estimate.error if math.isfinite(estimate.error) else 0.0 for estimate in estimates]
        bars = {"type": "bar", "x": names, "y": [estimate.mean for estimate in estimates], "name": name}
        style = {
            "marker": {"color": color},
            "error_y": {"type": "data", "array": errors, "thickness": 1.5, "color": INK},
        }
        figure.add(bars | style | {"hovertemplate": f"{name} %{{y:.1%}} ± %{{error_y.array:.1%}}<extra></extra>"})
    figure.layout |= {"barmode": "group", "hovermode": "closest", "bargap": 0.35}
    figure.axis("y", label(metric), tickformat=".0%", rangemode="tozero")
    return figure
