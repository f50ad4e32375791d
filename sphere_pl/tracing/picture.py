"""Heat-maps of the average indirect effect, layer by token role (ROME, Fig. 1 and 2)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sphere_pl.report.style import INK
from sphere_pl.storage.files import write_atomically
from sphere_pl.text.numbers import counted
from sphere_pl.tracing.functional import KINDS, LAST_SUBJECT, ROLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = {"state": "Purples", "mlp": "Greens", "attention": "Reds"}
_TITLES = {
    "state": "One restored state",
    "mlp": "{window} restored MLP outputs",
    "attention": "{window} restored attention outputs",
}


def draw_trace(summary: Mapping[str, Any], path: Path) -> Path:
    """Draw what `summarize` found as a PNG of 1600 x 380 pixels.

    Args:
        summary: What trace.json holds.
        path: The PNG to write.

    Returns:
        `path`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 3.8), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(KINDS), sharey=True)
    for axes, kind in zip(panels, KINDS, strict=True):
        _heat_map(axes, summary, kind)
    panels[0].set_yticks(range(len(ROLES)), ROLES)
    _frame(panels[KINDS.index("mlp")], summary["suggested_layers"])
    traced = counted(summary["traced"], "fact")
    title = f"Average indirect effect on the answer's probability · {summary['model']} · {traced}"
    figure.suptitle(title.replace("$", r"\$"), x=0.01, ha="left", weight="bold")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", facecolor="white"))
    return path


def _heat_map(axes: "Axes", summary: Mapping[str, Any], kind: str) -> None:
    effects = summary["average_indirect_effect"][kind]
    # A role that no fact has stays blank.
    rows = [[float("nan") if mean is None else mean for mean in effects[role]["mean"]] for role in ROLES]
    image = axes.imshow(rows, cmap=_COLORS[kind], aspect="auto", vmin=0)
    axes.figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
    axes.set_title(_TITLES[kind].format(window=summary["settings"]["window"]), loc="left", size=11)
    axes.set_xlabel("layer" if kind == "state" else "middle layer of the window")
    axes.tick_params(length=0)


def _frame(axes: "Axes", layers: list[int]) -> None:
    """Frame the suggested layers at the last subject token."""
    from matplotlib.patches import Rectangle

    corner = (layers[0] - 0.5, LAST_SUBJECT - 0.5)
    axes.add_patch(Rectangle(corner, len(layers), 1, fill=False, edgecolor=INK, linewidth=2))
    label = f"suggested: {layers[0]} to {layers[-1]}" if len(layers) > 1 else f"suggested: {layers[0]}"
    axes.annotate(label, (layers[0] - 0.5, LAST_SUBJECT - 0.6), va="bottom", size=9, color=INK)
