"""The study's results as the page needs them: series, pairs with and without SPHERE, differences with intervals."""

import json
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import dropwhile
from pathlib import Path
from statistics import harmonic_mean, mean, stdev
from typing import Any, NamedTuple, TypeVar

import torch
from scipy.stats import t

from sphere_callbacks.functional.statistics import SpearmanResult, spearman_test
from study.cells import Key, parse

COLLAPSE = 0.6  # efficacy over all edits below it is a collapse
SCORES = ("efficacy", "generalization", "neighborhood_agreement")  # what a run shall keep
Item = TypeVar("Item")
Name = TypeVar("Name", bound=Hashable)


class Estimate(NamedTuple):
    """A figure with its standard error.

    Attributes:
        value: The figure.
        error: Its standard error.
        freedom: Degrees of freedom that the error rests on.
    """

    value: float
    error: float
    freedom: float = math.inf

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval."""
        reach = float(t.ppf(0.975, self.freedom)) * self.error
        return self.value - reach, self.value + reach

    @property
    def side(self) -> int:
        """1 if the interval lies above 0, -1 if below, 0 if it includes it: not told apart."""
        low, high = self.interval
        return (low > 0) - (high < 0)


class Run(NamedTuple):
    """A finished cell."""

    key: Key
    found: dict[str, Any]

    def series(self, name: str) -> list[tuple[float, float]]:
        """Edits and value of a metric wherever it was measured."""
        for table in (self.found["validations"], self.found["batches"]):
            if name in table:
                points = zip(table["edits"], table[name], strict=True)
                return [(edits, value) for edits, value in points if value is not None]
        return []

    def at(self, name: str, edits: float) -> float | None:
        """Value of a metric after so many edits; None if it was not measured there."""
        return dict(self.series(name)).get(edits)

    def scored(self, edits: float) -> float:
        """How many edits the validation after `edits` scored: all of them at the end, a sample at most before."""
        prefix = "--model.evaluation.validation_records="
        most = [float(word.removeprefix(prefix)) for word in self.found.get("arguments", ()) if word.startswith(prefix)]
        return edits if edits == self.key.edits else min([edits, *most])

    def proportion(self, name: str, edits: float) -> Estimate | None:
        """A metric that is a share p of n records, one prompt of each: its standard error is `sqrt(p (1 - p) / n)`."""
        p = self.at(name, edits)
        return None if p is None else Estimate(p, math.sqrt(p * (1 - p) / self.scored(edits)))

    def held(self, edits: float) -> Estimate | None:
        """The score of a run: the harmonic mean of `SCORES` after so many edits, their errors taken as independent."""
        parts = [part for name in SCORES if (part := self.proportion(f"val/{name}", edits)) is not None]
        if len(parts) < len(SCORES):
            return None
        score = harmonic_mean([part.value for part in parts])
        # The derivative of 3 / (1/a + 1/b + 1/c) after a is score^2 / (3 a^2); at 0 it has none, and the score is 0.
        slopes = [score**2 / (len(parts) * part.value**2) if part.value else 0.0 for part in parts]
        return Estimate(score, math.hypot(*(k * part.error for k, part in zip(slopes, parts, strict=True))))

    @property
    def last(self) -> float:
        """Edits at the last validation."""
        return float(self.found["validations"].get("edits", [0])[-1])

    @property
    def collapse(self) -> float | None:
        """Edits at the first validation with an efficacy below `COLLAPSE`, once it has been above; None without one.

        A method that never gets there, whatever it does, has not collapsed.
        """
        reached = dropwhile(lambda point: point[1] < COLLAPSE, self.series("val/efficacy"))
        return next((edits for edits, value in reached if value < COLLAPSE), None)


class Pair(NamedTuple):
    """A run with SPHERE and the same run without, and the last edit count at which both were measured."""

    sphere: Run
    plain: Run
    edits: float

    def value(self, name: str) -> tuple[float, float] | None:
        """A metric with and without SPHERE at the common edit count."""
        values = self.sphere.at(name, self.edits), self.plain.at(name, self.edits)
        return None if values[0] is None or values[1] is None else (values[0], values[1])

    def difference(self, name: str) -> Estimate | None:
        """Difference of a metric that is a share of the records.

        The runs are taken as independent; both score the same records, so the true error is rather smaller.
        """
        sphere, plain = (run.proportion(name, self.edits) for run in (self.sphere, self.plain))
        if sphere is None or plain is None:
            return None
        return Estimate(sphere.value - plain.value, math.hypot(sphere.error, plain.error))


def kind(run: Run) -> str:
    """A run's data, method, settings and variant, without its draw.

    Example:
        >>> kind(Run(parse("counterfact-alphaedit-current-ridge1-draw2-800"), {}))
        'alphaedit ridge1 current'
    """
    variant = "" if run.key.variant == "plain" else run.key.variant
    data = "" if run.key.data == "counterfact" else f"{run.key.data}, "
    return f"{data}{' '.join(part for part in (run.key.method, run.key.label.replace('-', ' '), variant) if part)}"


def load(folder: Path) -> list[Run]:
    """All finished cells with at least one validation, in the order of their names."""
    runs = [
        Run(parse(path.stem), json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))
    ]
    return [run for run in runs if run.found["validations"]]


def pairs(runs: Sequence[Run], variant: str | None = "current") -> list[Pair]:
    """Runs with SPHERE beside their partners without it, the longest partner where there are several.

    Args:
        runs: All runs; those on the tuning records are left out.
        variant: SPHERE's variant; all of them if None.
    """
    found = []
    for run in runs:
        partners = [other for other in runs if other.key._replace(edits=0) == run.key.partner]
        if run.key == run.key.partner._replace(edits=run.key.edits) or run.key.draw == 0 or not partners:
            continue
        if variant is not None and run.key.variant != variant:
            continue
        partner = max(partners, key=lambda other: other.last)
        common = {edits for edits, _ in run.series("val/efficacy")} & {e for e, _ in partner.series("val/efficacy")}
        if common:
            found.append(Pair(run, partner, max(common)))
    return found


def pooled(differences: Sequence[Estimate]) -> Estimate:
    """Mean of differences that are independent of each other."""
    n = len(differences)
    return Estimate(sum(d.value for d in differences) / n, math.sqrt(sum(d.error**2 for d in differences)) / n)


def grouped(items: Iterable[Item], key: Callable[[Item], Name]) -> dict[Name, list[Item]]:
    """Items by a key, both in the order in which they come.

    Example:
        >>> grouped(["ab", "c", "de"], len)
        {2: ['ab', 'de'], 1: ['c']}
    """
    found: dict[Name, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def averaged(values: Sequence[float]) -> Estimate:
    """Mean of draws, with the standard error that they show; that of one draw is infinite.

    Methods are not pooled: draws of one that collapses lie far apart.
    """
    n = len(values)
    return Estimate(mean(values), stdev(values) / math.sqrt(n) if n > 1 else math.inf, max(1, n - 1))


def correlation(run: Run, metric: str, *, differences: bool) -> SpearmanResult | None:
    """Spearman of the energy and a metric over a run's validations, on levels or consecutive differences.

    None with fewer than five of them, or where a series never changes. The energy's relative change stands for it: five
    digits of the energy itself would hide most changes.
    """
    energy = dict(run.series("energy/change"))
    points = [(energy[edits], value) for edits, value in run.series(metric) if edits in energy]
    if len(points) - differences < 5:
        return None
    x, y = torch.tensor(points, dtype=torch.float64).T
    found = spearman_test(x.diff(), y.diff()) if differences else spearman_test(x, y)
    return None if math.isnan(found.rho) else found


def shares(run: Run, ratio: float = 0.5) -> dict[str, tuple[float, float]]:
    """Mean share of the update's energy in the principal directions, and the chance of it, for each weight."""
    prefix = f"shares/update_{ratio:g}/"
    found = {}
    for name in run.found["batches"]:
        if name.startswith(prefix):
            weight = name.removeprefix(prefix)
            chance = [value for _, value in run.series(f"shares/chance_{ratio:g}/{weight}")]
            update = [value for _, value in run.series(name)]
            found[weight] = (sum(update) / len(update), sum(chance) / len(chance))
    return found


def share_ratios(run: Run) -> list[float]:
    """Mean share of the updates in the principal directions as a multiple of chance, for each weight."""
    return [update / chance for update, chance in shares(run).values()]
