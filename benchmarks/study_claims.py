"""The paper's claims, each decided by a rule from measured figures: holds, does not, cannot be told."""

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.study_results import COLLAPSE, Difference, Pair, Run, correlation, pairs, pooled, shares

HOLDS, DOES_NOT, OPEN = "holds here", "does not hold here", "cannot be told"
ENOUGH = 3  # pairs that must agree before a direction counts
TABLE_1 = 0.1641  # the paper's mean gain over AlphaEdit
FIGURE_7 = 0.4905, 0.4264  # its relative gains of other methods, efficacy and generalization, after 3,000 edits


class Verdict(NamedTuple):
    """A claim and what came of it.

    Attributes:
        claim: The claim in the paper.
        word: One of `HOLDS`, `DOES_NOT`, `OPEN`.
        why: The figures that say so.
        rule: How they were turned into the word.
    """

    claim: str
    word: str
    why: str
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
        >>> from benchmarks.study_cells import parse
        >>> title(Run(parse("counterfact-alphaedit-plain-ridge1-draw2-800"), {}))
        'alphaedit ridge1, draw 2'
    """
    parts = [run.key.method, run.key.label, "" if is_plain(run) else run.key.variant]
    data = "" if run.key.data == "counterfact" else f"{run.key.data}, "
    return f"{data}{' '.join(part for part in parts if part)}, draw {run.key.draw}"


def collapses(runs: Sequence[Run]) -> Verdict:
    """Does sequential editing without SPHERE collapse the model?"""
    plain = [run for run in runs if is_plain(run)]
    fallen = [run for run in plain if run.collapse is not None]
    parts = [
        f"{title(run)}: below {COLLAPSE:.0%} at {run.collapse:.0f} edits"
        if run.collapse is not None
        else f"{title(run)}: {run.series('val/efficacy')[-1][1]:.2f} after {run.last:.0f}"
        for run in plain
    ]
    return Verdict(
        "Sequential editing without SPHERE collapses the model.",
        HOLDS if fallen else OPEN,
        f"Efficacy over all edits: {'; '.join(parts) or 'no run without SPHERE is finished'}.",
        f"Holds if a run without SPHERE falls below {COLLAPSE:.0%}; cannot be told as long as none has, since more "
        "edits "
        "might.",
    )


def interferes(runs: Sequence[Run]) -> Verdict:
    """Do updates lie in the principal directions more than by chance?"""
    ratios: dict[str, list[float]] = {}
    for run in runs:
        if is_plain(run):
            for weight, (update, chance) in shares(run).items():
                ratios.setdefault(f"{run.key.method} {weight.split('.')[2]}", []).append(update / chance)
    means = {name: sum(values) / len(values) for name, values in ratios.items()}
    above = [value > 1.25 for value in means.values()]
    methods = {name.split()[0] for name in means}
    word = OPEN if len(methods) < 2 else HOLDS if all(above) else DOES_NOT if not any(above) else OPEN
    figures = (
        f"from {min(means.values()):.2f} ({min(means, key=means.__getitem__)}) to "
        f"{max(means.values()):.2f} times chance ({max(means, key=means.__getitem__)})"
        if means
        else "not measured yet"
    )
    return Verdict(
        "Updates of the usual methods interfere with the principal directions of the weights.",
        word,
        "Share of the squared norm of the updates in the principal directions (η = 0.5), by method and layer: "
        f"{figures}; "
        f"above 1.25 times chance in {sum(above)} of {len(above)}.",
        "From two methods on: holds if every layer of every method is above 1.25 times chance, does not if none is.",
    )


def energy_follows(runs: Sequence[Run]) -> Verdict:
    """Do changes of the energy go with changes of the efficacy?"""
    found = [(run, correlation(run, "val/efficacy", differences=True)) for run in runs if is_plain(run)]
    tests = [(run, test) for run, test in found if test is not None]
    apart = [test for _, test in tests if test.low > 0 or test.high < 0]
    one_way = len({test.rho > 0 for test in apart}) == 1
    long = bool(tests) and all(test.n >= 20 for _, test in tests)
    word = HOLDS if len(apart) * 2 > len(tests) >= ENOUGH and one_way else DOES_NOT if long and not apart else OPEN
    parts = [f"{title(run)}: {t.rho:+.2f} [{t.low:+.2f}, {t.high:+.2f}], n = {t.n}" for run, t in tests]
    return Verdict(
        "Fluctuations of the energy go with the loss of performance.",
        word,
        f"Spearman of the consecutive differences of energy and efficacy, 95 % interval: "
        f"{'; '.join(parts) or 'not measured yet'}.",
        f"Holds if the interval excludes 0, on one side, in most of at least {ENOUGH} runs without SPHERE; does not "
        "if it "
        "never does with 20 differences or more. Levels are not used: two series that trend always correlate.",
    )


def direction(figures: Sequence[tuple[Pair, float]], unit: str) -> tuple[str, str]:
    """The word for figures of which SPHERE wants each below 0, and all of them in words."""
    word = OPEN
    if len(figures) >= ENOUGH:
        word = (
            HOLDS if all(value < 0 for _, value in figures) else DOES_NOT if all(v >= 0 for _, v in figures) else OPEN
        )
    parts = [f"{title(pair.sphere)} at {pair.edits:.0f} edits {value:+.3g} {unit}" for pair, value in figures]
    return word, "; ".join(parts) or "no pair of runs is finished"


def steadier_energy(runs: Sequence[Run]) -> Verdict:
    """Does SPHERE change the energy less?"""
    figures = []
    for pair in pairs(runs):
        values = pair.value("energy/change")
        if values is not None and values[1] != 0:
            figures.append((pair, 100 * (abs(values[0]) / abs(values[1]) - 1)))
    word, text = direction(figures, "%")
    return Verdict(
        "SPHERE holds the hyperspherical energy.",
        word,
        f"Absolute change of the energy since the start, with SPHERE against without: {text}.",
        f"Holds if it is smaller in all of at least {ENOUGH} pairs, does not if in none.",
    )


def keeps_ability(runs: Sequence[Run]) -> Verdict:
    """Does SPHERE keep the perplexity lower?"""
    figures = []
    for pair in pairs(runs):
        values = pair.value("val/perplexity")
        if values is not None:
            figures.append((pair, 100 * (values[0] / values[1] - 1)))
    word, text = direction(figures, "%")
    tasks = any(name.startswith("abilities/") for run in runs for name in run.found["batches"])
    return Verdict(
        "SPHERE keeps general ability.",
        word,
        f"Perplexity on held-out text with SPHERE against without: {text}.",
        f"Holds if it is lower in all of at least {ENOUGH} pairs, does not if in none."
        + ("" if tasks else " Tasks were not run."),
    )


def gain(differences: Sequence[Difference], claimed: float) -> str:
    """The word for a mean gain of which the paper claims a size."""
    if not differences:
        return OPEN
    low, high = pooled(differences).interval
    return HOLDS if low > 0 else DOES_NOT if high < claimed else OPEN


def editing_score(pair: Pair) -> Difference | None:
    """Difference of the mean of efficacy, generalization and specificity."""
    names = ("val/efficacy", "val/generalization", "val/specificity")
    each = [d for d in (pair.difference(name) for name in names) if d is not None]
    return pooled(each) if len(each) == len(names) else None


def in_points(difference: Difference) -> str:
    """A difference with its interval, in percentage points."""
    low, high = difference.interval
    return f"{100 * difference.value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"


def better_than_alphaedit(runs: Sequence[Run]) -> Verdict:
    """Does SPHERE beat AlphaEdit by what the paper says?"""
    chosen = [
        pair
        for pair in pairs(runs)
        if pair.sphere.key.method == "alphaedit"
        and pair.plain.collapse is not None
        and pair.plain.collapse <= pair.edits
    ]
    scores = [(pair, score) for pair in chosen if (score := editing_score(pair)) is not None]
    parts = [f"{title(pair.sphere)} at {pair.edits:.0f} edits {in_points(score)}" for pair, score in scores]
    mean = f" Mean: {in_points(pooled([score for _, score in scores]))}." if scores else ""
    return Verdict(
        f"SPHERE outperforms AlphaEdit, by {100 * TABLE_1:.2f} on average.",
        gain([score for _, score in scores], TABLE_1),
        f"Mean of efficacy, generalization and specificity, with SPHERE less without, 95 % interval: "
        f"{'; '.join(parts) or 'no pair of runs has come that far'}.{mean}",
        "Pairs count from the collapse of AlphaEdit on, where the paper's figures were taken. Holds if the interval "
        "of the "
        "mean lies above 0; does not if it includes 0 or less and excludes the paper's figure; cannot be told "
        "otherwise. "
        "The interval counts records, not draws.",
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
        word = HOLDS if all(later) else DOES_NOT if not any(later) else OPEN
    return Verdict(
        "With SPHERE a method lasts for more edits.",
        word,
        f"First validation with an efficacy below {COLLAPSE:.0%}: "
        f"{'; '.join(parts) or 'no run without SPHERE has collapsed'}.",
        f"Holds if it comes later in all of at least {ENOUGH} pairs, does not if in none.",
    )


def _count(edits: float | None) -> str:
    return "not within the run" if edits is None else f"{edits:.0f}"


def plug_and_play(runs: Sequence[Run]) -> Verdict:
    """Do other methods gain from SPHERE by what the paper says?"""
    chosen = [pair for pair in pairs(runs) if pair.sphere.key.method != "alphaedit"]
    relative = []
    for pair in chosen:
        values, difference = pair.value("val/efficacy"), pair.difference("val/efficacy")
        if values is not None and difference is not None and values[1] > 0:
            relative.append((pair, Difference(difference.value / values[1], difference.error / values[1])))
    parts = [f"{title(pair.sphere)} at {pair.edits:.0f} edits {d.value:+.1%} ± {d.error:.1%}" for pair, d in relative]
    word = gain([d for _, d in relative], FIGURE_7[0]) if len(relative) >= ENOUGH else OPEN
    # One method that gains a great deal lifts any mean.
    if word == HOLDS and 2 * sum(d.interval[0] > 0 for _, d in relative) <= len(relative):
        word = OPEN
    return Verdict(
        f"As a plug-in SPHERE improves other methods, their efficacy by {FIGURE_7[0]:.0%} on average.",
        word,
        f"Relative change of the efficacy over all edits, ± its standard error: "
        f"{'; '.join(parts) or 'no pair of runs is finished'}.",
        f"From {ENOUGH} methods on: holds if the 95 % interval of the mean lies above 0, and that of most methods; "
        "does not if that of the mean includes 0 or less and excludes the paper's figure.",
    )
