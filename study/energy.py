"""The page's section on energy and performance: within runs, and between runs with SPHERE and without."""

import math
from collections import Counter
from collections.abc import Sequence

import torch

from sphere_callbacks.functional.statistics import SpearmanResult, spearman_test
from study.claims import energy_ratios, title
from study.markup import folded
from study.runs import Run, correlation
from study.why import share_runs


def energy_section(runs: Sequence[Run]) -> str:
    """Spearman of the energy with three metrics, levels and differences, and whether holding it keeps the edits."""
    lines = [
        "## Energy and performance",
        "",
        "Spearman's ρ between the relative change of the energy, mean over the matrices, and a metric over the "
        "validations of a run, with its 95 % bootstrap interval; KL is that of the unedited model on ordinary text, "
        "measured after every batch; levels as in the paper's Fig. 2, consecutive differences as in its Fig. 3. Two "
        "series that trend always correlate on levels, so the differences are the honest column.",
        "",
    ]
    rows = [
        "| run | validations | efficacy, levels | efficacy, differences | perplexity, levels | perplexity, differences "
        "| KL, levels | KL, differences |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        cells = []
        for metric in ("val/efficacy", "val/perplexity", "drift/kl"):
            for differences in (False, True):
                test = correlation(run, metric, differences=differences)
                cells.append("" if test is None else _coefficient(test))
        rows.append(f"| {title(run)} | {len(run.series('val/efficacy'))} | {' | '.join(cells)} |")
    lines += folded(f"{len(runs)} runs", rows)
    if share_runs(runs):
        lines += ["", "![Changes of efficacy against changes of energy](figures/changes.png)"]
    return "\n".join([*lines, *held_and_kept(runs), ""])


def held_and_kept(runs: Sequence[Run]) -> list[str]:
    """Whether SPHERE keeps what was edited where it holds the energy, over all pairs of runs."""
    found = [
        (ratio, difference)
        for pair, ratio in energy_ratios(runs)
        if (difference := pair.difference("val/efficacy")) is not None
    ]
    held = Counter(difference.side for ratio, difference in found if ratio < 0)
    if not held:
        return []
    words = (
        f"Where SPHERE holds the energy, does it keep the edits? It changes the energy less in {held.total()} of "
        f"{len(found)} pairs of runs; of these, efficacy is higher with SPHERE in {held[1]}, lower in {held[-1]} and "
        f"not told apart in {held[0]}."
    )
    points = torch.tensor([(-ratio, difference.value) for ratio, difference in found], dtype=torch.float64)
    test = spearman_test(*points.T)
    if not math.isnan(test.rho):
        words += (
            " Spearman's ρ over the pairs, between how much less the energy changes (logarithm of the ratio) and how "
            f"much more efficacy is left: {_coefficient(test)}; pairs of one method are not independent."
        )
    return ["", words]


def _coefficient(test: SpearmanResult) -> str:
    return f"{test.rho:+.2f} [{test.low:+.2f}, {test.high:+.2f}]"
