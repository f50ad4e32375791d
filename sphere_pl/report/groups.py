"""Sort runs for a comparison: runs that differ by their seed alone are repetitions and share a row."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sphere_pl.evaluation.metrics.table import FIRST_RANK, is_share, metric_of
from sphere_pl.report.reading import RunData, number
from sphere_pl.report.style import DASHES, METHOD_COLORS, SYMBOLS
from sphere_pl.text.method_names import display_name
from sphere_pl.text.numbers import counted

SPHERE = "SPHERE"
UNEDITED = "unedited"


class Estimate(NamedTuple):
    """A mean with its standard error, NaN where there is none."""

    mean: float
    error: float = math.nan


class Look(NamedTuple):
    """How a group is drawn in every figure."""

    color: str
    dash: str
    symbol: str


class Group(NamedTuple):
    """Repetitions of one experiment.

    Attributes:
        label: A name that no other group has.
        model: The model edited; empty for a run that has not finished.
        method: The method, or the folder's name for a run that has not finished.
        edits: How many edits were made.
        runs: The repetitions, at least one.
        look: How to draw it.
    """

    label: str
    model: str
    method: str
    edits: int
    runs: tuple[RunData, ...]
    look: Look

    @property
    def finished(self) -> bool:
        """Whether all repetitions have."""
        return all(run.finished for run in self.runs)

    @property
    def base(self) -> str:
        """The method without SPHERE."""
        run = self.runs[0]
        return display_name(run.method_name, [transform for transform in run.transforms if transform != SPHERE])

    @property
    def has_sphere(self) -> bool:
        """Whether the updates pass through the projection."""
        return SPHERE in self.runs[0].transforms

    def estimate(self, metric: str, when: str = "after") -> Estimate:
        """A metric `before` or `after`: over records for one run, over runs for several."""
        values = [run.after(metric) if when == "after" else run.before(metric) for run in self.runs]
        return pool(values, self.runs[0].standard_error(metric, when))

    @property
    def energy_change(self) -> Estimate:
        """Mean relative change of the energy at the end."""
        return pool([(run.series("energy/change").values or (math.nan,))[-1] for run in self.runs])

    @property
    def seconds_per_edit(self) -> Estimate:
        """Seconds per edit."""
        return pool([number(run.results.get("seconds_per_edit")) for run in self.runs])


def pool(values: Sequence[float], error: float = math.nan) -> Estimate:
    """Average over runs.

    Args:
        values: One value for each run.
        error: Standard error of a single run's value; not used for several.

    Example:
        >>> pool([0.5], 0.1), pool([0.25, 0.75], 0.1)
        (Estimate(mean=0.5, error=0.1), Estimate(mean=0.5, error=0.25))
    """
    if len(values) == 1:
        return Estimate(values[0], error)
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values))))


def group_runs(runs: Iterable[RunData]) -> list[Group]:
    """Group repetitions, give each group a name of its own and a look.

    Runs are repetitions if they have finished, agree in model, method, count of edits and configuration (seeds and
    folders aside), and no two have the same seed.
    """
    found: dict[tuple[object, ...], list[RunData]] = {}
    for run in runs:
        same = (run.model, run.method, run.edits, _without_seed(run.config)) if run.finished else (run.folder,)
        found.setdefault(same, []).append(run)
    groups = [part for members in found.values() for part in _split(members)]
    return [
        Group(label, part[0].model, part[0].method, part[0].edits, tuple(part), look_of(place))
        for place, (part, label) in enumerate(zip(groups, _labels([part[0] for part in groups]), strict=True))
    ]


def look_of(place: int) -> Look:
    """Colours first, then dashes: 28 groups can be told apart."""
    count = len(METHOD_COLORS)
    return Look(METHOD_COLORS[place % count], DASHES[place // count % len(DASHES)], SYMBOLS[place % len(SYMBOLS)])


def best(groups: Sequence[Group]) -> dict[tuple[str, str], bool]:
    """Which groups are the best of their model and count of edits, for each metric: the first and those near it.

    Near is what differs by no more than a standard error of the two, or where there is none to the digits that are
    shown. Where all are near, none is better than another.

    Returns:
        True by (label, metric); a group that is alone has no rivals and is never best.
    """
    found = {}
    for block in blocks(groups).values():
        rivals = {group.label: group for group in block if group.finished}
        for metric in FIRST_RANK if len(rivals) > 1 else ():
            scores = {label: _score(metric, group.estimate(metric)) for label, group in rivals.items()}
            top = max((each for each in scores.values() if math.isfinite(each.mean)), default=Estimate(math.nan))
            near = {label: _is_near(metric, each, top) for label, each in scores.items()}
            found.update({(label, metric): each and not all(near.values()) for label, each in near.items()})
    return found


def blocks(groups: Sequence[Group]) -> dict[tuple[str, int], list[Group]]:
    """Groups by model and count of edits: only within a block are numbers comparable."""
    found: dict[tuple[str, int], list[Group]] = {}
    for group in groups:
        found.setdefault((group.model, group.edits), []).append(group)
    return found


def pairs(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    """Each finished method with its counterpart that SPHERE was added to (paper, Fig. 7)."""
    plain: Mapping[tuple[str, int, str], Group] = {
        (group.model, group.edits, group.method): group for group in groups if group.finished and not group.has_sphere
    }
    keys = [(group, (group.model, group.edits, group.base)) for group in groups if group.finished and group.has_sphere]
    return [(plain[key], group) for group, key in keys if key in plain]


def _score(metric: str, found: Estimate) -> Estimate:
    """A score of which more is better."""
    row = metric_of(metric)
    return found if row is None or row.higher_is_better else found._replace(mean=-found.mean)


def _is_near(metric: str, score: Estimate, top: Estimate) -> bool:
    """Whether a score is as good as the best one: within a standard error, or to the digits that the table shows."""
    digits = 0.001 if is_share(metric) else 0.01 * abs(top.mean)  # of a perplexity, a hundredth
    error = max((each for each in (score.error, top.error) if math.isfinite(each)), default=0.0)
    return top.mean - score.mean <= max(error, digits / 2)


def _without_seed(config: str) -> str:
    return "\n".join(line for line in config.splitlines() if not re.search(r"seed|run_dir|save_dir|dirpath", line))


def _split(runs: list[RunData]) -> list[list[RunData]]:
    seeds = [run.results.get("seed") for run in runs]
    return [runs] if len(set(seeds)) == len(seeds) else [[run] for run in runs]


def _labels(runs: Sequence[RunData]) -> list[str]:
    """Methods, made different by what differs: the model, the count of edits, at last the folder."""
    labels = [run.method for run in runs]
    for detail in ([run.model for run in runs], [counted(run.edits, "edit") for run in runs]):
        if len(set(labels)) < len(labels) and len(set(detail)) > 1:
            labels = [f"{label} · {more}" if more else label for label, more in zip(labels, detail, strict=True)]
    repeated = {label for label in labels if labels.count(label) > 1}
    folders = [run.folder.resolve() for run in runs]
    names = [folder.name for folder in folders]
    places = [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]
    return [f"{label} ({place})" if label in repeated else label for label, place in zip(labels, places, strict=True)]
