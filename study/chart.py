"""The two figures of docs/study.md: what holds after the edits, and what SPHERE changes of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.figure import Figure
from scipy.stats import binomtest

from sphere_pl.report.style import BLUE, FAINT, GREEN, INK, ORANGE, VERMILLION
from study.comparison import MODELS, Result, fullest
from study.figures import save
from study.outcomes import HIT, UNASKED
from study.runs import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = (
    ("written", "the edited question is answered with the new fact", BLUE, "o"),
    ("written_paraphrase", "so is the same question in other words", ORANGE, "D"),
    ("neighbor", "questions on other things are answered as before", GREEN, "s"),
)


def draw_comparison(results: Sequence[Result], path: Path) -> Path:
    """A panel for each model with a line for each method: shares of what was asked, with 95 % intervals."""
    rows = {name: found for name in MODELS if (found := fullest(results, name))}
    models = [*rows]
    heights = [len(rows[name]) + 1.2 for name in models]
    figure = Figure(figsize=(9, 1.3 + 0.33 * sum(heights)), dpi=100, layout="constrained")
    panels = figure.subplots(len(models), 1, sharex=True, squeeze=False, height_ratios=heights).flat
    for name, panel in zip(models, panels, strict=True):
        _fill(panel, rows[name])
        panel.set_title(f"{MODELS[name]} after {rows[name][0].key.edits} edits", loc="left", fontsize=11)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", frameon=False, fontsize=9)
    figure.axes[-1].set_xlabel("share of the questions (lines: 95 % intervals)")
    return save(figure, path)


def _fill(panel: "Axes", rows: Sequence[Result]) -> None:
    whole = [each for each in rows if not each.broke]
    for kind, words, color, marker in KINDS:
        shares = [each.share(kind) for each in whole]
        # Three marks that coincide are still seen: each kind has a height of its own within its line.
        places = [place + 0.16 * (marker == "o") - 0.16 * (marker == "s") for place in range(len(whole), 0, -1)]
        values = [each.value for each in shares]
        ends = [wilson(each.signs(kind)) for each in whole]
        below, above = ([abs(v - end[side]) for v, end in zip(values, ends, strict=True)] for side in (0, 1))
        reach = [below, above]
        panel.errorbar(values, places, xerr=reach, label=words, fmt=marker, color=color, markersize=5, elinewidth=1.2)
    panel.set_yticks(range(len(whole), 0, -1), [each.name for each in whole])
    panel.set_ylim(0.4, len(whole) + 0.6)
    panel.set_xlim(-0.02, 1.02)
    panel.grid(axis="x", color=FAINT, alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def wilson(signs: str) -> tuple[float, float]:
    """The 95 % interval of a share of facts (Wilson's), which keeps between 0 and 1.

    Example:
        >>> [round(end, 2) for end in wilson("+" * 10)]
        [0.72, 1.0]
    """
    interval = binomtest(signs.count(HIT), len(signs) - signs.count(UNASKED)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


class Effect(NamedTuple):
    """What SPHERE changes of one method in one setting.

    Attributes:
        name: Method, model and number of edits.
        difference: Efficacy with SPHERE minus without.
        remembers: Whether the method remembers the keys of earlier edits.
    """

    name: str
    difference: Estimate
    remembers: bool


def draw_effects(effects: Sequence[Effect], path: Path) -> Path:
    """A line for each pair of runs, those that remember below: the difference with its 95 % interval."""
    ordered = sorted(effects, key=lambda each: (not each.remembers, each.difference.value))
    figure = Figure(figsize=(9, 1.0 + 0.27 * len(ordered)), dpi=100, layout="constrained")
    panel = figure.subplots()
    for place, each in enumerate(ordered):
        color = VERMILLION if each.difference.side < 0 else GREEN if each.difference.side > 0 else FAINT
        low, high = each.difference.interval
        panel.plot([low, high], [place, place], color=color, linewidth=2)
        panel.plot(each.difference.value, place, "o", color=color, markeredgecolor=INK, markersize=6)
    remembering = sum(each.remembers for each in ordered)
    if 0 < remembering < len(ordered):
        panel.axhline(remembering - 0.5, color=INK, linewidth=1)
    panel.axvline(0, color=INK, linewidth=1, linestyle=":")
    panel.set_yticks(range(len(ordered)), [each.name for each in ordered], fontsize=8)
    panel.set_xlabel(
        "share of the edited facts that hold, with SPHERE minus without\n"
        "above the line: methods that forget the keys of earlier edits\n"
        "below it: methods that remember them"
    )
    panel.spines[["top", "right"]].set_visible(False)
    return save(figure, path)
