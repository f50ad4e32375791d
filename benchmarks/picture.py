"""One wide picture of a run, for the README."""

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sphere_pl.evaluation.metrics.table import ACCURACIES
from sphere_pl.report.correlations import correlations
from sphere_pl.report.figures import axis_type, energy_changes, mean_energy_change
from sphere_pl.report.fits import MIN_POINTS, changes, confidence_ellipse, regression_line
from sphere_pl.report.reading import RunData, Series, read_run
from sphere_pl.report.style import FAINT, INK, METRIC_COLORS, METRIC_SYMBOLS, ORANGE, label, signed
from sphere_pl.storage.files import write_atomically

_SHAPES = {"circle": "o", "diamond": "D", "square": "s", "triangle-up": "^", "x": "X", "star": "*", "cross": "P"}
_MARKERS = {metric: _SHAPES[symbol] for metric, symbol in METRIC_SYMBOLS.items()}
_STYLE: Any = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa3ad",
    "axes.grid": True,
    "grid.color": "#e6e9ed",
    "axes.axisbelow": True,
    "xtick.color": "#4a5563",
    "ytick.color": "#4a5563",
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 12,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "savefig.facecolor": "white",
}


def summary_picture(run_dir: Path, path: Path) -> Path:
    """Draw a run's metrics, energy and their changes side by side as a PNG of 1600 x 560 pixels.

    Args:
        run_dir: The run folder.
        path: The PNG to write.

    Returns:
        `path`.

    Raises:
        UserError: If the folder is no run folder.
    """
    run = read_run(run_dir)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(16, 5.6), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        left, middle, right = figure.subplots(1, 3, width_ratios=[1.25, 1.1, 1])
        _accuracy(left, run)
        _energy(middle, run)
        _changes(right, run)
        title = " · ".join(part for part in (run.method, run.model, f"{run.edits:,} edits") if part)
        figure.suptitle(title.replace("$", r"\$"), x=0.01, ha="left")
        write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
    return path


def _accuracy(axes: Axes, run: RunData) -> None:
    for metric in ACCURACIES:
        series = run.series(f"val/{metric}").starting_at(run.before(metric))
        if series.edits:
            color = METRIC_COLORS[metric]
            axes.plot(
                *series,
                color=color,
                marker=_MARKERS[metric],
                markersize=4,
                linewidth=2,
                label=label(metric),
            )
            if math.isfinite(run.before(metric)):
                axes.axhline(run.before(metric), color=color, linewidth=1, linestyle=":")
    _dress(axes, run, "All edits so far")
    axes.set_ylim(-0.03, 1.15)
    axes.yaxis.set_major_formatter(_percent())
    _legend(axes, loc="upper center", ncols=4, columnspacing=0.9, handlelength=1.4, borderpad=0)


def _energy(axes: Axes, run: RunData) -> None:
    for series in energy_changes(run).values():
        axes.plot(*series, color=FAINT, linewidth=0.9, alpha=0.8)
    axes.plot(*mean_energy_change(run), color=INK, linewidth=2.5, label="energy, change")
    axes.yaxis.set_major_formatter(_percent(None))
    _dress(axes, run, "Energy and perplexity")
    perplexity = _finite(run.series("val/perplexity").starting_at(run.before("perplexity")))
    if perplexity.edits:
        other = axes.twinx()
        other.plot(*perplexity, color=ORANGE, marker="X", markersize=5, linewidth=1.8, label="perplexity (right)")
        other.set_yscale(axis_type(perplexity.values))
        other.grid(visible=False)
        lines = [*axes.get_lines()[-1:], *other.get_lines()]
        axes.legend(handles=lines, loc="upper left")
    else:
        _legend(axes, loc="upper left")


def _changes(axes: Axes, run: RunData) -> None:
    found = correlations(run)
    for metric in ("efficacy", "generalization"):
        cloud = changes(run.series("energy/change"), run.series(f"val/{metric}"))
        if len(cloud.x) + 1 >= MIN_POINTS:
            color = METRIC_COLORS[metric]
            rho = f", ρ {signed(found[metric].differences.rho)}" if metric in found else ""
            axes.plot(
                cloud.x,
                cloud.y,
                _MARKERS[metric],
                color=color,
                alpha=0.75,
                label=f"Δ {label(metric)}{rho}",
            )
            _fit(axes, cloud.x, cloud.y, color)
    axes.set_title("Changes between validations")
    axes.set_xlabel("Δ energy, relative")
    # Changes of a millionth would need labels so long that they run into each other.
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 2), useMathText=True)
    axes.yaxis.set_major_formatter(_percent())
    axes.locator_params(axis="x", nbins=5)
    axes.locator_params(axis="y", steps=[1, 2, 5, 10])
    axes.margins(y=0.12)
    _legend(axes, loc="upper right", borderpad=0)


def _fit(axes: Axes, x: list[float], y: list[float], color: str) -> None:
    """The regression line and the 95 % ellipse."""
    line, ellipse = regression_line(x, y), confidence_ellipse(x, y)
    if line is not None:
        ends = [min(x), max(x)]
        axes.plot(ends, [line.intercept + line.slope * end for end in ends], color=color, linewidth=1.8)
    if ellipse is not None:
        axes.plot(*ellipse, color=color, linewidth=1.2, linestyle=":")


def _dress(axes: Axes, run: RunData, title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(run.progress)


def _legend(axes: Axes, **options: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**options)
    else:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=FAINT)


def _finite(series: Series) -> Series:
    kept = [(edits, value) for edits, value in zip(*series, strict=True) if math.isfinite(value)]
    return Series(tuple(edits for edits, _ in kept), tuple(value for _, value in kept))


def _percent(decimals: int | None = 0) -> PercentFormatter:
    return PercentFormatter(xmax=1, decimals=decimals)
