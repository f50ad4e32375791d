"""The study's page on SPHERE's `cumulative_ratio` η and `strength` α: a table and heat maps of every sweep."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from study.cells import Key, papers_strength, swept
from study.claims import title
from study.figures import save
from study.runs import Run, grouped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray


class Measure(NamedTuple):
    """What a heat map shows: a metric, its title and format, and what of it should be small."""

    metric: str
    name: str
    form: str
    cost: Callable[["NDArray[np.float64]"], "NDArray[np.float64]"]


MEASURES = (
    Measure("val/efficacy", "efficacy, all edits", "{:.2f}", np.negative),
    Measure("val/generalization", "generalization", "{:.2f}", np.negative),
    Measure("val/neighborhood_agreement", "agreement on neighbours", "{:.2f}", np.negative),
    Measure("val/perplexity", "perplexity", "{:.1f}", np.positive),
    Measure("energy/change", "change of the energy", "{:+z.3%}", np.abs),
)


class Sweep(NamedTuple):
    """Runs of one method that differ in SPHERE's basis, η and α alone.

    Attributes:
        plain: The run without SPHERE, α = 0 at every η.
        points: Runs by basis, η and α.
        edits: How many edits they are compared after.
    """

    plain: Run
    points: dict[tuple[str, float, float], Run]
    edits: float

    @property
    def bases(self) -> list[str]:
        """Bases that were swept."""
        return sorted({basis for basis, _, _ in self.points})

    @property
    def ratios(self) -> list[float]:
        """All η."""
        return sorted({ratio for _, ratio, _ in self.points})

    @property
    def strengths(self) -> list[float]:
        """All α, 0 among them."""
        return [0.0, *sorted({strength for _, _, strength in self.points})]

    def value(self, metric: str, basis: str, ratio: float, strength: float) -> float | None:
        """A metric at a point; None if it was not run."""
        run = self.points.get((basis, ratio, strength)) if strength else self.plain
        return None if run is None else run.at(metric, self.edits)


def point(key: Key) -> tuple[str, float, float] | None:
    """Basis, η and α of a run with SPHERE; None for its other variants.

    Example:
        >>> from study.cells import parse
        >>> point(parse("counterfact-memit-pretrained_eta0.3_alpha0.25-draw1-600"))
        ('pretrained', 0.3, 0.25)
    """
    if key.is_swept:
        return swept(key.variant)
    return (key.variant, 0.5, papers_strength(key.method)) if key.variant in ("current", "pretrained") else None


def sweeps(runs: Sequence[Run]) -> list[Sweep]:
    """Every sweep that has a run without SPHERE beside it."""
    found = []
    for key, members in grouped(runs, lambda run: run.key.partner).items():
        plain = [run for run in members if run.key.variant == "plain"]
        lengths = [run.last for run in members if run.key.is_swept]
        if key.variant == "plain" and plain and lengths:
            points = {where: run for run in members if (where := point(run.key))}
            found.append(Sweep(plain[0], points, min(lengths)))
    return found


def sweep_section(runs: Sequence[Run]) -> str:
    """Table and heat maps of every sweep."""
    lines = ["### SPHERE's η and α", ""]
    found = sweeps(runs)
    for sweep in found:
        lines += [
            f"Efficacy over all edits after {sweep.edits:.0f} of them, {title(sweep.plain)}; α = 0 is the run without "
            f"SPHERE, ± {_error(sweep):.3f} is the standard error of each. In bold the best with it.",
            "",
            *_table(sweep),
            "",
            _summary(sweep),
            "",
            f"![Sweep of η and α](figures/{figure_name(sweep)})",
            "",
        ]
    return "\n".join(lines if found else [])


def figure_name(sweep: Sweep) -> str:
    """Name of the file with a sweep's heat maps."""
    return f"sweep-{sweep.plain.key.settings}.png"


def _efficacies(sweep: Sweep) -> dict[tuple[str, float, float], float]:
    values = {where: run.at("val/efficacy", sweep.edits) for where, run in sweep.points.items()}
    return {where: value for where, value in values.items() if value is not None}


def _error(sweep: Sweep) -> float:
    values = _efficacies(sweep).values()
    mean = sum(values) / len(values)
    return float((mean * (1 - mean) / sweep.edits) ** 0.5)


def _table(sweep: Sweep) -> list[str]:
    top = max(_efficacies(sweep).values())
    lines = [
        f"| basis | η | {' | '.join(f'α = {strength:g}' for strength in sweep.strengths)} |",
        "|---" * (2 + len(sweep.strengths)) + "|",
    ]
    for basis in sweep.bases:
        for ratio in sweep.ratios:
            values = [sweep.value("val/efficacy", basis, ratio, strength) for strength in sweep.strengths]
            if all(value is None for value in values[1:]):
                continue
            cells = ["" if value is None else f"{value:.3f}" for value in values]
            cells = [f"**{text}**" if value == top else text for text, value in zip(cells, values, strict=True)]
            lines.append(f"| {basis} | {ratio:g} | {' | '.join(cells)} |")
    return lines


def _summary(sweep: Sweep) -> str:
    """The best point, and how many points are above the run without SPHERE and below it."""
    values = _efficacies(sweep)
    without = sweep.plain.at("val/efficacy", sweep.edits) or 0.0
    basis, ratio, strength = max(values, key=lambda where: values[where])
    apart = 2 * 2**0.5 * _error(sweep)
    above = sum(value > without + apart for value in values.values())
    below = sum(value < without - apart for value in values.values())
    grid = len(sweep.bases) * len(sweep.ratios) * (len(sweep.strengths) - 1)
    of_grid = f" (of a grid of {grid})" if len(values) < grid else ""
    return (
        f"Of {len(values)} points{of_grid} {above} are more than two standard errors of a difference above the run "
        f"without SPHERE, {without:.3f}, and {below} below it. The best with SPHERE: η = {ratio:g}, α = {strength:g}, "
        f"{basis} basis."
    )


def draw_sweep(sweep: Sweep, path: Path) -> Path:
    """A heat map for each measure and basis: η up, α across, the run without SPHERE in the column α = 0."""
    rows, columns = len(sweep.bases), len(MEASURES)
    figure = Figure(figsize=(3.5 * columns, 2.6 * rows + 0.3), dpi=80, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for column, measure in enumerate(MEASURES):
        grids = [_grid(sweep, measure.metric, basis) for basis in sweep.bases]
        costs = measure.cost(np.array(grids))
        shades = Normalize(float(np.nanmin(costs)), float(np.nanmax(costs)))
        for basis, grid, panel in zip(sweep.bases, grids, axes[:, column], strict=True):
            panel.imshow(measure.cost(grid), cmap="Blues_r", norm=shades, aspect="auto", origin="lower")
            panel.set_title(f"{measure.name}, {basis}", loc="left", fontsize=10)
            _label(panel, sweep, grid, measure.form)
    figure.supxlabel("α (darker is better)", fontsize=10)
    figure.supylabel("η", fontsize=10)
    return save(figure, path)


def _grid(sweep: Sweep, metric: str, basis: str) -> "NDArray[np.float64]":
    """A metric by η and α; NaN where it was not measured."""
    values = [[sweep.value(metric, basis, ratio, strength) for strength in sweep.strengths] for ratio in sweep.ratios]
    return np.array(values, dtype=np.float64)


def _label(panel: "Axes", sweep: Sweep, grid: "NDArray[np.float64]", form: str) -> None:
    outline = [withStroke(linewidth=2, foreground="white")]
    for (y, x), value in np.ndenumerate(grid):
        if np.isfinite(value):
            panel.text(x, y, form.format(value), ha="center", va="center", fontsize=7.5, path_effects=outline)
    panel.set_xticks(range(len(sweep.strengths)), [f"{strength:g}" for strength in sweep.strengths])
    panel.set_yticks(range(len(sweep.ratios)), [f"{ratio:g}" for ratio in sweep.ratios])
