"""Build docs/study.md and its figures from the results in benchmarks/study; no figure in it is typed by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

from benchmarks.cells import STOPPED
from benchmarks.study_cells import FULL, STRENGTH, VARIANTS
from benchmarks.study_claims import in_points, is_plain, title, verdicts
from benchmarks.study_figures import changes, curves, share_curves
from benchmarks.study_results import Pair, Run, correlation, load, pairs, shares
from sphere_pl.files import write_text

HERE = Path(__file__).parent
RESULTS, GEOMETRY = HERE / "study", HERE / "geometry.json"
PAGE = HERE.parent / "docs" / "study.md"
FIGURES = PAGE.parent / "study"
EXTRAS = {
    "retention/": "retention by age",
    "abilities/": "general abilities",
    "generation/": "free generation",
}
SCORES = ("efficacy", "generalization", "specificity", "neighborhood_agreement")

HEAD = """# The paper's claims on a model that everyone can run

This page is written by `python -m benchmarks.study --page` from the files in [benchmarks/study](../benchmarks/study),
one for each run; every figure in it comes from there. The model is the default one, SmolLM2-135M-Instruct; the records
are CounterFact requests with rebuilt paraphrases and neighbours, so scores must not be set beside published ones.
Settings and what was made cheaper are in [conf/experiment/study](../conf/experiment/study/base.yaml). A *draw* is which
records, in which order; draw 0 is for tuning and appears in no comparison. The natural scale is edits for each input
dimension of an edited matrix, 1,536 here: the paper's 15,000 on LLaMA3-8B are 1.05, so 1,600 edits here.

```bash
python -m benchmarks.study --preset quick --jobs 2 --data <folder>    # the main comparison, three draws
python -m benchmarks.study --preset full --jobs 2 --data <folder>     # everything; finished cells are skipped
python -m benchmarks.study --page                                     # this page, from what is finished
```
"""


def write_page() -> None:
    """Draw the figures and write the page."""
    runs = load(RESULTS)
    draw_figures(runs)
    write_text(PAGE, page(runs, json.loads(GEOMETRY.read_text(encoding="utf-8"))))


def page(runs: Sequence[Run], geometry: dict[str, Any]) -> str:
    """The page's text."""
    counted = [run for run in runs if run.key.draw > 0]
    parts = [
        HEAD,
        claims(runs),
        table(counted),
        correlations(counted),
        figures(counted),
        extras(counted),
        heat_maps(counted),
        why(counted, geometry),
        tuned(runs),
        missing(runs),
    ]
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs that differ in SPHERE and draw alone, by a name for their figure."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        name = "-".join(part for part in (run.key.data, run.key.method, run.key.label) if part)
        found.setdefault(name, []).append(run)
    return found


def draw_figures(runs: Sequence[Run]) -> None:
    """All figures of the page."""
    counted = [run for run in runs if run.key.draw > 0]
    for name, members in groups(counted).items():
        curves(members, FIGURES / f"{name}.png")
    plain = share_runs(counted)
    if plain:
        share_curves(plain, FIGURES / "shares.png")
        changes(counted, FIGURES / "changes.png")


def share_runs(runs: Sequence[Run]) -> list[Run]:
    """The longest run without SPHERE of each method, at most four."""
    plain = [run for run in runs if is_plain(run) and shares(run)]
    longest = {run.key.method: run for run in sorted(plain, key=lambda run: run.last)}
    return [longest[name] for name in sorted(longest)][:4]


def claims(runs: Sequence[Run]) -> str:
    """One section for each claim."""
    found = verdicts(runs)
    lines = ["## The claims", "", "| claim | here |", "|---|---|"]
    lines += [f"| {verdict.claim} | **{verdict.word}** |" for verdict in found]
    for verdict in found:
        lines += ["", f"### {verdict.claim}", "", f"*{verdict.word.capitalize()}.* {verdict.measured}", ""]
        lines += [f"- {figure}" for figure in verdict.figures or ["not measured yet"]]
        lines += ["", f"Rule: {verdict.rule}"]
    return "\n".join([*lines, ""])


def table(runs: Sequence[Run]) -> str:
    """Table 1's form: the last validation of each run."""
    lines = [
        "## All runs",
        "",
        "Scores at a run's last validation, over all its edits, ± their standard error. Efficacy and the two after it "
        "are teacher-forced, with one paraphrase and one neighbour a record. Collapse is the first validation that "
        "falls to an efficacy below 60 %. Seconds an edit leave validation out.",
        "",
        "| run | edits | efficacy | generalization | specificity | agreement | perplexity | energy | collapse | "
        "s/edit |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(run) for run in runs]
    loads = [run.found.get("load") for run in runs]
    busy = sum(load is None or load["average"] > load["cores"] for load in loads)
    if busy:
        lines += ["", f"{busy} of {len(runs)} runs shared the machine with other work: their seconds are too long."]
    return "\n".join([*lines, ""])


def _row(run: Run) -> str:
    scores = []
    for name in SCORES:
        points = run.series(f"val/{name}")
        value = points[-1][1] if points else None
        error = None if value is None else (value * (1 - value) / run.last) ** 0.5
        scores.append("" if value is None else f"{value:.3f} ± {error:.3f}")
    before = (run.found.get("before") or {}).get("perplexity")
    perplexity = "".join(f"{points[-1][1]:.1f}" for points in [run.series("val/perplexity")] if points)
    perplexity += "" if before is None else f" (from {before:.1f})"
    energy = "".join(f"{points[-1][1]:+.3%}" for points in [run.series("energy/change")] if points)
    collapse = "" if run.collapse is None else f"{run.collapse:.0f}"
    failed = run.found.get("failed")
    edits = f"{run.last:.0f}" + ("" if not failed else f", {STOPPED}" if failed == STOPPED else ", broke off")
    seconds = run.found.get("seconds_per_edit")
    cells = [title(run), edits, *scores, perplexity, energy, collapse, "" if seconds is None else f"{seconds:.2f}"]
    return "| " + " | ".join(cells) + " |"


def extra(run: Run, prefix: str) -> dict[str, float]:
    """Last values of the metrics below a prefix; those that are taken at the end alone stand in `after`."""
    names = [name for table in ("validations", "batches") for name in run.found[table] if name.startswith(prefix)]
    after = run.found.get("after") or {}
    final = {name: after[name] for name in after if name.startswith(prefix) and "standard_error" not in name}
    found = final | {name: run.series(name)[-1][1] for name in names}
    return {name.removeprefix(prefix): value for name, value in found.items() if isinstance(value, float)}


def extras(runs: Sequence[Run]) -> str:
    """Retention, abilities and the like, where runs have measured them."""
    lines: list[str] = []
    for prefix, words in EXTRAS.items():
        found = {title(run): extra(run, prefix) for run in runs if extra(run, prefix)}
        names = list(dict.fromkeys(name for values in found.values() for name in values))
        if found:
            lines += [f"## {words.capitalize()}", "", f"| run | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
            for run, values in found.items():
                cells = [f"{values[name]:.3f}" if name in values else "" for name in names]
                lines.append(f"| {run} | {' | '.join(cells)} |")
            lines.append("")
    return "\n".join(lines)


def heat_maps(runs: Sequence[Run]) -> str:
    """Cosines between rows before and after (the paper's Figs. 4 and 5), of the runs that have drawn them."""
    found = [run for run in runs if drawing(run).exists()]
    lines = ["## Heat maps", "", "Cosines between 128 rows of the deepest edited weight, and a map of these rows."]
    for run in found:
        lines += [
            "",
            f"{title(run)}, after {run.last:.0f} edits:",
            "",
            f"![{title(run)}](../benchmarks/study/{drawing(run).name})",
        ]
    return "\n".join([*lines, ""]) if found else ""


def drawing(run: Run) -> Path:
    """Where the heat maps of a run are, if it has drawn any."""
    return RESULTS / f"{run.key.name}.png"


def correlations(runs: Sequence[Run]) -> str:
    """Spearman of the energy with two metrics, levels and differences."""
    lines = [
        "## Energy and performance",
        "",
        "Spearman's ρ between the mean energy per pair of rows and a metric over the validations of a run, with its "
        "95 % bootstrap interval; levels as in the paper's Fig. 2, consecutive differences as in its Fig. 3. Two "
        "series that trend always correlate on levels, so the differences are the honest column.",
        "",
        "| run | points | efficacy, levels | efficacy, differences | perplexity, levels | perplexity, differences |",
        "|---|---|---|---|---|---|",
    ]
    for run in runs:
        cells = []
        for metric in ("val/efficacy", "val/perplexity"):
            for differences in (False, True):
                test = correlation(run, metric, differences=differences)
                cells.append("" if test is None else f"{test.rho:+.2f} [{test.low:+.2f}, {test.high:+.2f}]")
        lines.append(f"| {title(run)} | {len(run.series('val/efficacy'))} | {' | '.join(cells)} |")
    if share_runs(runs):
        lines += ["", "![Changes of efficacy against changes of energy](study/changes.png)"]
    return "\n".join([*lines, ""])


def figures(runs: Sequence[Run]) -> str:
    """One figure for each method and its settings."""
    lines = ["## Over the edits"]
    for name in groups(runs):
        lines += ["", f"{name.replace('-', ', ')}:", "", f"![{name}](study/{name}.png)"]
    return "\n".join([*lines, ""])


def why(runs: Sequence[Run], geometry: dict[str, Any]) -> str:
    """What SPHERE can remove here, and what its variants change."""
    lines = ["## Why", "", "### What there is to remove", ""]
    lines += geometry_table(geometry)
    lines += share_table(runs)
    lines += ["### Variants of SPHERE", "", "| variant | arguments |", "|---|---|", legend(), ""]
    return "\n".join(lines + variant_table(pairs(runs, None)) + [""])


def geometry_table(geometry: dict[str, Any]) -> list[str]:
    """Principal directions against the null space, without any edit."""
    lines = [
        f"Before any edit (`python -m benchmarks.geometry`; η = {geometry['ratio']:g}, null space below "
        f"{geometry['threshold']:g}): how the principal directions lie to AlphaEdit's null space and to the keys of "
        "ordinary text. The chance level is what a random subspace or vector would have.",
        "",
        "| layer | directions | chance | share of the keys in them | of the keys in the null space | directions "
        "inside the null space | chance |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['layer']} | {row['rank']} | {row['principal_chance']:.1%} | {row['keys_in_principal']:.1%} | "
        f"{row['null_keys_in_principal']:.1%} | {row['principal_in_null']:.1%} | {row['null_chance']:.1%} |"
        for row in geometry["layers"]
    ]
    ratios = [row["keys_in_principal"] / row["principal_chance"] for row in geometry["layers"]]
    inside = [row["principal_in_null"] / row["null_chance"] for row in geometry["layers"]]
    lines += [
        "",
        f"Ordinary keys have {min(ratios):.2f} to {max(ratios):.2f} times chance in the principal directions, and the "
        f"null space holds {min(inside):.2f} to {max(inside):.2f} times chance of these directions. An update reads "
        "along keys: near 1 means that the principal directions of the weight's rows say little about where keys, and "
        "so updates, lie, and that the null space does not exclude them either.",
        "",
    ]
    return lines


def share_table(runs: Sequence[Run]) -> list[str]:
    """Shares of the updates of each run without SPHERE, and what SPHERE would remove of them."""
    plain = [run for run in runs if is_plain(run)]
    if not plain:
        return []
    lines = [
        "Share of the squared norm of the updates without SPHERE that lies in principal directions, mean over the "
        "batches, as multiples of chance: in those of the weight as it is for three η, in those of the start, and of "
        "the accumulated change in those of the start at the end. The last column is the share of the squared norm "
        "that SPHERE with η = 0.5 and the paper's α would take of such updates, `(2α − α²)` times the share.",
        "",
        "| run | layer | r / d_in at η 0.5 | now, η 0.5: mean, first → last batch | now, η 0.1 | now, η 0.9 | start, "
        "η 0.1 | start, η 0.5 | accumulated, η 0.5 | SPHERE takes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in plain:
        lines += [_share_row(run, weight) for weight in shares(run)]
    lines += ["", _share_summary(plain), ""]
    if share_runs(runs):
        lines += ["![Share of the updates in the principal directions](study/shares.png)", ""]
    return lines


def _share_row(run: Run, weight: str) -> str:
    def multiple(kind: str, ratio: float) -> float:
        update = [value for _, value in run.series(f"shares/{kind}_{ratio:g}/{weight}")]
        chance = [value for _, value in run.series(f"shares/chance_{ratio:g}/{weight}")]
        if kind == "update":
            return sum(update) / sum(chance)
        return (update[-1] if kind == "accumulated" else sum(update) / len(update)) / chance[0]

    kinds = [("update", 0.1), ("update", 0.9), ("start", 0.1), ("start", 0.5), ("accumulated", 0.5)]
    first, last = ends(run, weight)
    cells = [f"{multiple('update', 0.5):.2f}, {first:.2f} → {last:.2f}"]
    cells += [f"{multiple(kind, ratio):.2f}" for kind, ratio in kinds]
    layer, chance = weight.split(".")[2], shares(run)[weight][1]
    return f"| {title(run)} | {layer} | {chance:.1%} | {' | '.join(cells)} | {_taken(run, weight):.1%} |"


def ends(run: Run, weight: str) -> tuple[float, float]:
    """Share of the first and of the last update in the principal directions at that time, as multiples of chance."""
    update, chance = (run.series(f"shares/{kind}_0.5/{weight}") for kind in ("update", "chance"))
    return update[0][1] / chance[0][1], update[-1][1] / chance[-1][1]


def _taken(run: Run, weight: str) -> float:
    strength = STRENGTH.get(run.key.method, 0.8)
    return float((2 * strength - strength**2) * shares(run)[weight][0])


def _share_summary(plain: Sequence[Run]) -> str:
    taken = [_taken(run, weight) for run in plain for weight in shares(run)]
    ratios = [update / chance for run in plain for update, chance in shares(run).values()]
    shorter = [1 - (1 - value) ** 0.5 for value in (min(taken), max(taken))]
    lines = [
        f"Over all these rows an update has {min(ratios):.2f} to {max(ratios):.2f} times chance in the directions that "
        f"SPHERE weakens, so SPHERE takes {min(taken):.1%} to {max(taken):.1%} of its squared norm: the update becomes "
        f"{shorter[0]:.1%} to {shorter[1]:.1%} shorter, much as if as many random directions had been weakened."
    ]
    for run in plain:
        both = [ends(run, weight) for weight in shares(run)]
        first, last = (sum(values) / len(values) for values in zip(*both, strict=True))
        kept = run.series("principal/overlap")
        turned = f", while {1 - kept[-1][1]:.0%} of those of the start have turned away" if kept else ""
        lines.append(
            f"{title(run)}: {first:.2f} times chance in the first batch, {last:.2f} in the last{turned}; "
            f"{_memory(run)}."
        )
    return "\n\n".join([lines[0], "\n".join(f"- {line}" for line in lines[1:])])


def _memory(run: Run) -> str:
    if run.key.method == "alphaedit":
        return "it keeps new updates from changing what the keys of earlier edits give"
    return "it remembers no earlier edit"


def variant_table(found: Sequence[Pair]) -> list[str]:
    """Every run with SPHERE against the same run without."""
    if not found:
        return ["No pair of runs is finished."]
    lines = [
        "Each run with SPHERE less the same run without, at the last edit count that both have, with 95 % intervals "
        "that take the two as independent (they score the same records, so the true ones are narrower). A column is "
        "in bold where the interval excludes 0. Removed is the squared norm of the part that SPHERE took, as a share "
        "of the update's, mean over the batches.",
        "",
        "| run | edits | efficacy | generalization | agreement | perplexity | change of the energy, with / without | "
        "removed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for pair in found:
        cells = []
        for name in ("efficacy", "generalization", "neighborhood_agreement"):
            difference = pair.difference(f"val/{name}")
            cells.append("" if difference is None else _bold(difference.interval, in_points(difference)))
        perplexities, energies = pair.value("val/perplexity"), pair.value("energy/change")
        cells.append("" if perplexities is None else f"{perplexities[0] / perplexities[1] - 1:+.1%}")
        cells.append("" if energies is None else f"{energies[0]:+.3%} / {energies[1]:+.3%}")
        removed = [value for _, value in pair.sphere.series("projection/removed")]
        cells.append(f"{sum(removed) / len(removed):.1%}" if removed else "")
        lines.append(f"| {title(pair.sphere)} | {pair.edits:.0f} | {' | '.join(cells)} |")
    return [*lines, "", best(found)]


def _bold(interval: tuple[float, float], text: str) -> str:
    return f"**{text}**" if interval[0] > 0 or interval[1] < 0 else text


def best(found: Sequence[Pair]) -> str:
    """Which variants did better or worse than none, by their intervals."""
    better: list[str] = []
    worse: list[str] = []
    same: list[str] = []
    for pair in found:
        difference = pair.difference("val/efficacy")
        if difference is not None:
            low, high = difference.interval
            (better if low > 0 else worse if high < 0 else same).append(title(pair.sphere))
    return (
        f"Efficacy over all edits is higher with SPHERE beyond doubt in: {'; '.join(better) or 'none'}. Lower in: "
        f"{'; '.join(worse) or 'none'}. Not told apart in: {'; '.join(same) or 'none'}."
    )


def tuned(runs: Sequence[Run]) -> str:
    """The candidates of the methods' own settings."""
    found = [run for run in runs if run.key.draw == 0]
    if not found:
        return ""
    lines = [
        "## Tuning",
        "",
        "Candidates of each method's own settings, four a method, on draw 0, without SPHERE. In bold the best of a "
        "method, by the harmonic mean of the three scores, as ROME's: a method that does nothing scores nothing.",
        "",
        "| candidate | edits | efficacy | generalization | agreement | score | perplexity |",
        "|---|---|---|---|---|---|---|",
    ]
    means = {run.key.name: harmonic_mean(_tuned_scores(run)) for run in found}
    for run in found:
        mean = means[run.key.name]
        best = mean == max(means[other.key.name] for other in found if other.key.method == run.key.method)
        scores = " | ".join(f"{value:.3f}" for value in _tuned_scores(run))
        shown = f"**{mean:.3f}**" if best else f"{mean:.3f}"
        perplexity = run.series("val/perplexity")[-1][1]
        lines.append(f"| {run.key.method} {run.key.label} | {run.last:.0f} | {scores} | {shown} | {perplexity:.1f} |")
    return "\n".join([*lines, ""])


def _tuned_scores(run: Run) -> list[float]:
    names = ("efficacy", "generalization", "neighborhood_agreement")
    return [run.series(f"val/{name}")[-1][1] for name in names]


def missing(runs: Sequence[Run]) -> str:
    """What the full plan has and this page has not."""
    done = {run.key.name for run in runs if run.found.get("failed") != STOPPED}
    left = [cell for cell in FULL if cell.name not in done]
    unmeasured = [words for prefix, words in EXTRAS.items() if not any(extra(run, prefix) for run in runs)]
    unmeasured += [] if any(drawing(run).exists() for run in runs) else ["heat maps"]
    lines = [
        "## Not run",
        "",
        f"{len(FULL) - len(left)} of the {len(FULL)} cells of the full plan are finished. Not measured by any of them: "
        f"{', '.join(unmeasured) or 'nothing'}.",
    ]
    if left:
        lines += ["", "`python -m benchmarks.study --preset full --jobs 2 --data <folder>` runs what is left:", ""]
        lines += [f"- {cell.name}" for cell in left]
    return "\n".join([*lines, ""])


def legend() -> str:
    """Names of SPHERE's variants and their arguments."""
    return "\n".join(f"| {name} | `{' '.join(arguments)}` |" for name, arguments in VARIANTS.items())
