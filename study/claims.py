"""The paper's claims, each decided by a rule from measured figures: holds, does not, cannot be told."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sphere_callbacks.functional.statistics import SpearmanResult
from study.runs import (
    COLLAPSE,
    Estimate,
    Pair,
    Run,
    averaged,
    correlation,
    grouped,
    kind,
    pairs,
    pooled,
    share_ratios,
)

HOLDS, IN_PART, DOES_NOT, OPEN = "holds here", "holds in part", "does not hold here", "cannot be told"
UNMOVED = 1e-5  # relative change of the energy that says nothing
SCALE = 1536  # edits: one for each input dimension; the paper's 15,000 are 1.05
ENOUGH = 3  # pairs that must agree before a direction counts
ABOVE = 1.25  # times chance: a share of the updates that is more than chance
WEAK = 0.5  # a Spearman coefficient below it is no strong correlation
FOLLOWED = {"val/efficacy": "efficacy over all edits", "drift/kl": "distance to the unedited model"}
TABLE_1 = 0.1641  # the paper's mean gain over AlphaEdit
FIGURE_7 = 0.4905, 0.4264  # its relative gains of other methods, efficacy and generalization, after 3,000 edits


class Verdict(NamedTuple):
    """A claim and what came of it.

    Attributes:
        claim: The claim in the paper.
        word: One of `HOLDS`, `IN_PART`, `DOES_NOT`, `OPEN`.
        measured: What the figures are.
        figures: The figures that say so, one a line.
        rule: How they were turned into the word.
    """

    claim: str
    word: str
    measured: str
    figures: Sequence[str]
    rule: str


def verdicts(runs: Sequence[Run]) -> list[Verdict]:
    """All claims."""
    counted = [run for run in runs if run.key.draw > 0]
    return [
        collapses(counted),
        interferes(counted),
        energy_follows(counted),
        steadier_energy(counted),
        keeps_ability(counted),
        better_than_alphaedit(counted),
        lasts_longer(counted),
        plug_and_play(counted),
    ]


def is_plain(run: Run) -> bool:
    """Whether a run has neither SPHERE nor anchored targets."""
    return run.key.variant == "plain"


def title(run: Run) -> str:
    """A run in a few words.

    Example:
        >>> from study.cells import parse
        >>> title(Run(parse("counterfact-alphaedit-plain-ridge1-draw2-800"), {}))
        'alphaedit ridge1, draw 2'
    """
    return f"{kind(run)}, draw {run.key.draw}"


def collapses(runs: Sequence[Run]) -> Verdict:
    """Does sequential editing without SPHERE collapse the model?"""
    plain = [run for run in runs if is_plain(run)]
    fallen = [run for run in plain if run.collapse is not None]
    parts = [f"{title(run)}: {_fate(run)}" for run in plain]
    return Verdict(
        "Sequential editing without SPHERE collapses the model.",
        HOLDS if fallen else OPEN,
        f"Efficacy over all edits, without SPHERE. {len(fallen)} of {len(plain)} runs fall below {COLLAPSE:.0%}"
        f"{_kinds(fallen)}.",
        parts,
        f"Holds if a run without SPHERE falls below {COLLAPSE:.0%}; cannot be told as long as none has, since more "
        "edits might.",
    )


def _kinds(runs: Sequence[Run]) -> str:
    """Which kinds of runs they are, behind a colon; nothing if there is none."""
    names = "; ".join(dict.fromkeys(map(kind, runs)))
    return f": {names}" if names else ""


def _fate(run: Run) -> str:
    _, efficacy = run.series("val/efficacy")[-1]
    fallen = "" if run.collapse is None else f"below {COLLAPSE:.0%} at {run.collapse:.0f} edits, "
    return f"{fallen}{efficacy:.2f} after {run.last:.0f}"


def interferes(runs: Sequence[Run]) -> Verdict:
    """Do updates lie in the principal directions more than by chance?"""
    means = {
        name: [sum(ratios) / len(ratios) for ratios in zip(*map(share_ratios, members), strict=True)]
        for name, members in grouped(filter(is_plain, runs), kind).items()
    }
    means = {name: layers for name, layers in means.items() if layers}
    above = [value > ABOVE for layers in means.values() for value in layers]
    word = OPEN if len(means) < 2 else some(above)
    parts = [f"{name}: {', '.join(f'{v:.2f}' for v in layers)}" for name, layers in means.items()]
    found = {
        "Every layer": [name for name, layers in means.items() if min(layers) > ABOVE],
        "Some layers": [name for name, layers in means.items() if min(layers) <= ABOVE < max(layers)],
        "No layer": [name for name, layers in means.items() if max(layers) <= ABOVE],
    }
    where = [f" {layers} above {ABOVE:g}: {'; '.join(names)}." for layers, names in found.items() if names]
    return Verdict(
        "Updates of the usual methods interfere with the principal directions of the weights.",
        word,
        "Share of the squared norm of the updates without SPHERE in the principal directions (η = 0.5), as a multiple "
        "of what a random update would have there: mean over batches and draws, layer by layer." + "".join(where),
        parts,
        f"From two methods on: holds if every layer of every method is above {ABOVE:g} times chance, in part if some "
        "are, does not if none is.",
    )


def energy_follows(runs: Sequence[Run]) -> Verdict:
    """Do changes of the energy go with changes of the efficacy, or of the distance to the unedited model?"""
    cases = {}
    for name, members in grouped(filter(is_plain, runs), kind).items():
        for metric, words in FOLLOWED.items():
            tests = [test for run in members if (test := correlation(run, metric, differences=True)) is not None]
            if tests:
                cases[f"{name}, {words}"] = tests
    enough = [averaged([test.rho for test in tests]) for tests in cases.values() if len(tests) >= ENOUGH]
    return Verdict(
        "Fluctuations of the energy go with the loss of performance.",
        _followed(enough),
        "Spearman's ρ of the consecutive differences of energy and efficacy (validation by validation), and of energy "
        "and the KL divergence from the unedited model on ordinary text (batch by batch). "
        f"{sum(map(_is_weak, enough))} of the {len(enough)} cases that count exclude a strong correlation, |ρ| ≥ "
        f"{WEAK:g}{_listed({n: _coefficients(tests) for n, tests in cases.items() if len(tests) >= ENOUGH})}.",
        [f"{name}: {_coefficients(tests)}" for name, tests in cases.items()],
        f"Methods with at least {ENOUGH} draws count, each with both measures. Holds if the 95 % interval of the mean "
        "over the draws (Student's) excludes 0 in most cases, in part if in some; does not if in none and all "
        f"intervals lie within ±{WEAK:g}; cannot be told otherwise. Levels are not used: two series that trend always "
        "correlate. A single draw's interval is a bootstrap one.",
    )


def _listed(figures: Mapping[str, str]) -> str:
    """Figures by what they are of, behind a colon; nothing if there is none."""
    return f": {'; '.join(f'{name} {figure}' for name, figure in figures.items())}" if figures else ""


def _followed(cases: Sequence[Estimate]) -> str:
    apart = [case.side != 0 for case in cases]
    if any(apart):
        return HOLDS if 2 * sum(apart) > len(apart) else IN_PART
    return DOES_NOT if cases and all(map(_is_weak, cases)) else OPEN


def _is_weak(correlation: Estimate) -> bool:
    return max(map(abs, correlation.interval)) < WEAK


def _coefficients(tests: Sequence[SpearmanResult]) -> str:
    mean = averaged([test.rho for test in tests])
    low, high = (tests[0].low, tests[0].high) if len(tests) == 1 else mean.interval
    draws = "one draw" if len(tests) == 1 else f"mean of {len(tests)} draws"
    return f"{mean.value:+.2f} [{max(low, -1):+.2f}, {min(high, 1):+.2f}], {draws} of {tests[0].n} differences"


def some(signs: Sequence[bool]) -> str:
    """The word for a claim that holds in so many of several cases."""
    return HOLDS if all(signs) else IN_PART if any(signs) else DOES_NOT


def lowered(figures: Sequence[tuple[Pair, float]]) -> tuple[str, str, list[str]]:
    """The word for logarithms of ratios of which SPHERE wants each below 0, a sentence, and all of them in words."""
    groups = grouped(figures, lambda figure: kind(figure[0].sphere))
    draws = {name: [value for _, value in members] for name, members in groups.items()}
    parts = [f"{name}: {percent(averaged(values))}" for name, values in draws.items()]
    enough = {name: values for name, values in draws.items() if len(values) >= ENOUGH}
    several = [all(value < 0 for value in values) for values in enough.values()]
    word = IN_PART if any(several) else DOES_NOT if several else OPEN
    if len(figures) >= ENOUGH and all(value < 0 for _, value in figures):
        word = HOLDS
    lower = sum(value < 0 for _, value in figures)
    means = _listed({name: percent(averaged(values)) for name, values in enough.items()})
    return word, f"Lower in {lower} of {len(figures)} pairs; methods with {ENOUGH} draws or more{means}.", parts


def percent(log_ratio: Estimate) -> str:
    """A ratio less 1 in percent, with its interval."""
    value, low, high = (f"{100 * math.expm1(min(each, 99)):+.1f}" for each in (log_ratio.value, *log_ratio.interval))
    return f"{value} % [{low}, {high}]" if math.isfinite(log_ratio.error) else f"{value} %, one draw"


LOWERED = (
    f"Holds if it is lower in every pair of at least {ENOUGH}; in part if it is for some method in each of at least "
    f"{ENOUGH} draws; does not if for no such method. Intervals are Student's, from the draws of a method."
)


def energy_ratios(runs: Sequence[Run]) -> list[tuple[Pair, float]]:
    """Logarithm of the energy's absolute change with SPHERE over that without, of each pair that moves it."""
    figures = []
    for pair in (pair for pair in pairs(runs) if pair.sphere.key.method != "prune"):
        values = pair.value("energy/change")
        if values is not None and values[0] and abs(values[1]) > UNMOVED:
            figures.append((pair, math.log(abs(values[0] / values[1]))))
    return figures


def steadier_energy(runs: Sequence[Run]) -> Verdict:
    """Does SPHERE change the energy less?"""
    word, sentence, parts = lowered(energy_ratios(runs))
    return Verdict(
        "SPHERE holds the hyperspherical energy.",
        word,
        "Absolute change of the energy since the start at the last edit count that both have, with SPHERE against "
        f"without, mean over the draws. {sentence}",
        parts,
        f"{LOWERED} Methods that move the energy by less than {UNMOVED:.3%} without SPHERE are left out, and "
        "PRUNE, whose energy is that of the weights before it restrains them.",
    )


def keeps_ability(runs: Sequence[Run]) -> Verdict:
    """Does SPHERE keep the perplexity lower?"""
    figures = []
    for pair in pairs(runs):
        values = pair.value("val/perplexity")
        if values is not None:
            figures.append((pair, math.log(values[0] / values[1])))
    word, sentence, parts = lowered(figures)
    return Verdict(
        "SPHERE keeps general ability.",
        word,
        f"Perplexity on held-out text with SPHERE against without, mean over the draws; tasks below. {sentence}",
        [*parts, *(tasks(runs) or ["Tasks were not run."])],
        f"{LOWERED} Tasks do not enter the word.",
    )


def tasks(runs: Sequence[Run]) -> list[str]:
    """Scores of the general abilities where a pair has measured them."""
    parts = []
    for pair in pairs(runs):
        for name in (name for name in pair.plain.found["batches"] if name.startswith("abilities/")):
            (_, before), *_, (_, without) = pair.plain.series(name)
            after = pair.sphere.series(name)
            if after:
                ends = f"{without:.3f} without and {after[-1][1]:.3f} with SPHERE"
                parts.append(f"{title(pair.sphere)}: {name.removeprefix('abilities/')} {before:.3f} before, {ends}")
    return parts


def gain(differences: Sequence[Estimate], claimed: float) -> str:
    """The word for a mean gain of which the paper claims a size."""
    if not differences:
        return OPEN
    mean = pooled(differences)
    return HOLDS if mean.side > 0 else DOES_NOT if mean.interval[1] < claimed else OPEN


def editing_score(pair: Pair) -> Estimate | None:
    """Difference of the mean of efficacy, generalization and specificity."""
    names = ("val/efficacy", "val/generalization", "val/specificity")
    each = [d for d in (pair.difference(name) for name in names) if d is not None]
    return pooled(each) if len(each) == len(names) else None


def in_points(difference: Estimate) -> str:
    """A difference with its interval, in percentage points."""
    low, high = difference.interval
    return f"{100 * difference.value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"


def better_than_alphaedit(runs: Sequence[Run]) -> Verdict:
    """Does SPHERE beat AlphaEdit by what the paper says?"""
    found = [pair for pair in pairs(runs) if pair.sphere.key.method == "alphaedit"]
    chosen = [pair for pair in found if pair.edits >= min(SCALE, pair.plain.collapse or SCALE)]
    scores = [(pair, score) for pair in chosen if (score := editing_score(pair)) is not None]
    parts = [f"{title(pair.sphere)}: {in_points(score)} at {pair.edits:.0f} edits" for pair, score in scores]
    parts += [f"mean: {in_points(pooled([score for _, score in scores]))}"] if scores else []
    return Verdict(
        f"SPHERE outperforms AlphaEdit, by {100 * TABLE_1:.2f} on average.",
        gain([score for _, score in scores], TABLE_1),
        "Mean of efficacy, generalization and specificity, with SPHERE less without, with its 95 % interval.",
        parts or ["no pair of runs has come that far"],
        f"Pairs count from one edit an input dimension ({SCALE}) on, the scale of the paper's figures, or from the "
        "collapse of AlphaEdit on. Holds if the interval of the mean lies above 0; does not if it includes 0 or less "
        "and excludes the paper's figure; cannot be told otherwise. The interval counts records, not draws.",
    )


def lasts_longer(runs: Sequence[Run]) -> Verdict:
    """Does the collapse come later with SPHERE?"""
    fallen = [pair for pair in pairs(runs) if pair.plain.collapse is not None]
    later = [pair.sphere.collapse is None or pair.sphere.collapse > (pair.plain.collapse or 0) for pair in fallen]
    parts = [
        f"{title(pair.sphere)}: {_count(pair.plain.collapse)} edits without, {_count(pair.sphere.collapse)} with SPHERE"
        for pair in fallen
    ]
    word = OPEN
    if len(fallen) >= ENOUGH:
        word = some(later)
    if word == HOLDS and len({kind(pair.plain) for pair in fallen}) == 1:
        word = IN_PART
    return Verdict(
        "With SPHERE a method lasts for more edits.",
        word,
        f"First validation with an efficacy below {COLLAPSE:.0%}.",
        parts or ["no run without SPHERE has collapsed"],
        f"From {ENOUGH} pairs on: holds if it comes later in all, of two methods or more; in part if in some, or of "
        "one method; does not if in none.",
    )


def _count(edits: float | None) -> str:
    return "not within the run" if edits is None else f"{edits:.0f}"


def plug_and_play(runs: Sequence[Run]) -> Verdict:
    """Do other methods gain from SPHERE by what the paper says?"""
    chosen = [pair for pair in pairs(runs) if pair.sphere.key.method != "alphaedit"]
    gains = [(kind(pair.sphere), one) for pair in chosen if (one := _relative(pair)) is not None]
    methods = {
        name: pooled([one for _, one in members]) for name, members in grouped(gains, lambda named: named[0]).items()
    }
    parts = [f"{name}: {d.value:+z.1%} ± {d.error:.1%}" for name, d in methods.items()]
    return Verdict(
        f"As a plug-in SPHERE improves other methods, their efficacy by {FIGURE_7[0]:.0%} on average.",
        _plugged_in(list(methods.values())),
        "Relative change of the efficacy over all edits, mean over the draws, ± its standard error. Above 0 beyond "
        f"doubt in {sum(d.side > 0 for d in methods.values())} of {len(methods)} cases, below in "
        f"{sum(d.side < 0 for d in methods.values())}.",
        parts,
        f"From {ENOUGH} methods on: holds if the 95 % interval lies above 0 for most methods and for their mean, in "
        "part if it does for some methods; does not if it does for none, and that of the mean excludes the paper's "
        "figure.",
    )


def _relative(pair: Pair) -> Estimate | None:
    """Difference of the efficacy as a share of what it is without SPHERE."""
    values, difference = pair.value("val/efficacy"), pair.difference("val/efficacy")
    if values is None or difference is None or values[1] <= 0:
        return None
    return Estimate(difference.value / values[1], difference.error / values[1])


def _plugged_in(methods: Sequence[Estimate]) -> str:
    gains = [method.side > 0 for method in methods]
    if len(methods) < ENOUGH:
        return OPEN
    # One method that gains a great deal lifts any mean.
    return IN_PART if any(gains) and 2 * sum(gains) <= len(gains) else gain(methods, FIGURE_7[0])
