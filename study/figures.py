"""The figures of study/README.md, drawn from the results alone."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sphere_pl.report.style import FAINT, METHOD_COLORS
from sphere_pl.storage.files import write_atomically
from study.claims import is_plain, title
from study.runs import COLLAPSE, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = (
    ("val/efficacy", "efficacy, all edits so far"),
    ("batch/efficacy", "efficacy, latest batch"),
    ("val/generalization", "generalization"),
    ("val/neighborhood_agreement", "agreement on neighbours"),
    ("val/perplexity", "perplexity"),
    ("energy/change", "change of the energy"),
    ("principal/overlap", "principal directions kept"),
    ("shares/drift", "‖W − W₀‖ / ‖W₀‖"),
    ("abilities/sst2", "sst2, accuracy"),
    ("abilities/gsm8k_gold_hint", "gsm8k behind the gold solution"),
)
MARKED = 20  # points that a curve has at most if each is marked
LINES = ("-", "--", ":", "-.")


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all; the same figure gives the same bytes."""
    canvas = FigureCanvasAgg(figure)
    buffer = BytesIO()
    canvas.print_png(buffer, metadata={"Software": ""})  # type: ignore[no-untyped-call]
    write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))
    return path


def legend(run: Run) -> str:
    """What a run's curve is called."""
    return {"plain": "without SPHERE", "current": "with SPHERE"}.get(run.key.variant, run.key.variant)


def curves(runs: Sequence[Run], path: Path) -> Path:
    """Everything against edits, one panel a quantity: a colour for each variant, a dash for each draw."""
    measured = [(metric, name) for metric, name in PANELS if any(run.series(metric) for run in runs)]
    columns = 4 if len(measured) <= 8 else 5
    rows = -(-len(measured) // columns)
    figure = Figure(figsize=(4 * columns, 3.5 * rows), dpi=80, layout="constrained")
    axes = iter(figure.subplots(rows, columns, squeeze=False).flat)
    variants = list(dict.fromkeys(run.key.variant for run in sorted(runs, key=lambda run: not is_plain(run))))
    draws = sorted({run.key.draw for run in runs})
    for (metric, name), panel in zip(measured, axes, strict=False):
        for run in sorted(runs, key=lambda run: variants.index(run.key.variant)):
            color = METHOD_COLORS[variants.index(run.key.variant) % len(METHOD_COLORS)]
            dash = LINES[draws.index(run.key.draw) % len(LINES)]
            points = run.series(metric)
            if points:
                label = f"{legend(run)}, draw {run.key.draw}"
                marker = "o" if len(points) <= MARKED else None
                panel.plot(*zip(*points, strict=True), dash, color=color, marker=marker, markersize=3, label=label)
        _dress(panel, name, runs, metric)
    for panel in axes:  # what is left of the last row
        panel.set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, min(6, len(labels))), frameon=False)
    return save(figure, path)


def _dress(panel: "Axes", name: str, runs: Sequence[Run], metric: str) -> None:
    panel.set_title(name, loc="left", fontsize=11)
    panel.set_xlabel("edits")
    panel.spines[["top", "right"]].set_visible(False)
    if metric == "val/efficacy":
        panel.axhline(COLLAPSE, color=FAINT, linewidth=1, linestyle=":")
    if metric == "val/perplexity":
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("{x:g}")
        before = [run.found["before"]["perplexity"] for run in runs if run.found.get("before")]
        if before:
            panel.axhline(before[0], color=FAINT, linewidth=1, linestyle=":")


def share_curves(runs: Sequence[Run], path: Path, ratio: float = 0.5) -> Path:
    """Share of the updates in the principal directions, by layer, against chance; one panel a run.

    Where there are many updates, means of neighbouring ones are shown.
    """
    figure, panels = _grid(len(runs), sharey=True)
    for run, panel in zip(runs, panels, strict=True):
        prefix = f"shares/update_{ratio:g}/"
        names = [name for name in run.found["batches"] if name.startswith(prefix)]
        for index, name in enumerate(names):
            color, weight = METHOD_COLORS[index % len(METHOD_COLORS)], name.removeprefix(prefix)
            points = smoothed(run.series(name))
            panel.plot(*zip(*points, strict=True), color=color, label=f"layer {weight.split('.')[2]}")
            chance = run.series(f"shares/chance_{ratio:g}/{weight}")
            panel.plot(*zip(*chance, strict=True), color=color, linestyle=":", linewidth=1)
        panel.set_title(title(run), loc="left", fontsize=11)
        panel.set_xlabel("edits")
        panel.legend(frameon=False, fontsize=8)
    panels[0].set_ylim(bottom=0)
    figure.supylabel("share of the update's squared norm (dotted: chance)", fontsize=10)
    return save(figure, path)


def smoothed(points: Sequence[tuple[float, float]], most: int = 20) -> list[tuple[float, float]]:
    """Means of neighbouring points, `most` of them or a few more.

    Example:
        >>> smoothed([(1, 0.0), (2, 4.0), (3, 6.0)], most=2)
        [(1.5, 2.0), (3.0, 6.0)]
    """
    size = -(-len(points) // most)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def changes(groups: Mapping[str, Sequence[Run]], path: Path) -> Path:
    """Changes of the efficacy against changes of the energy between validations (the paper's Fig. 3), by method."""
    figure, panels = _grid(len(groups))
    for (name, runs), panel in zip(groups.items(), panels, strict=True):
        for run in sorted(runs, key=lambda run: not is_plain(run)):
            steps = _steps(run)
            if steps:
                color = METHOD_COLORS[not is_plain(run)]
                panel.plot(*zip(*steps, strict=True), "o", color=color, markersize=4, label=legend(run))
        panel.axhline(0, color=FAINT, linewidth=1)
        panel.axvline(0, color=FAINT, linewidth=1)
        panel.set_title(name, loc="left", fontsize=11)
        known = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
        panel.legend(known.values(), known.keys(), frameon=False, fontsize=8)
    figure.supxlabel("change of the energy between validations, % of the start", fontsize=10)
    figure.supylabel("change of the efficacy over all edits", fontsize=10)
    return save(figure, path)


def _steps(run: Run) -> list[tuple[float, float]]:
    """Change of the energy in percent and of the efficacy, from validation to validation."""
    energy = dict(run.series("energy/change"))
    points = [(100 * energy[edits], value) for edits, value in run.series("val/efficacy") if edits in energy]
    return [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(points)]


def _grid(panels: int, *, sharey: bool = False) -> tuple[Figure, list["Axes"]]:
    """A figure of so many panels, four in a row."""
    columns = min(panels, 4)
    rows = -(-panels // columns)
    figure = Figure(figsize=(4 * columns, 3.2 * rows), dpi=80, layout="constrained")
    axes = list(figure.subplots(rows, columns, sharey=sharey, squeeze=False).flat)
    for axis in axes[:panels]:
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[panels:]:
        axis.set_visible(False)
    return figure, axes[:panels]
