"""The study's page on why: what SPHERE can remove of the updates, and what its variants change."""

from collections.abc import Sequence
from typing import Any

from study.cells import MEMORY, VARIANTS, papers_strength
from study.claims import in_points, is_plain, title
from study.markup import folded
from study.memory import memory_section
from study.runs import SCORES, Estimate, Pair, Run, pairs, share_ratios, shares


def share_runs(runs: Sequence[Run]) -> list[Run]:
    """The longest run without SPHERE of each method."""
    plain = [run for run in runs if is_plain(run) and shares(run)]
    longest = {run.key.method: run for run in sorted(plain, key=lambda run: run.last)}
    return [longest[name] for name in sorted(longest)]


def why(runs: Sequence[Run], geometry: dict[str, Any]) -> str:
    """What SPHERE can remove here, and what its variants change."""
    lines = ["## Why", "", "### What there is to remove", ""]
    lines += geometry_table(geometry)
    lines += share_table(runs)
    lines += memory_section(runs)
    lines += ["### Variants of SPHERE", "", "| variant | arguments |", "|---|---|", legend(), ""]
    return "\n".join(lines + variant_table(pairs(runs, None)) + [""])


def geometry_table(geometry: dict[str, Any]) -> list[str]:
    """Principal directions against the null space, without any edit."""
    lines = [
        f"Before any edit (`python -m study.geometry`; η = {geometry['ratio']:g}, null space below "
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
    ]
    rows = [
        "| run | layer | r / d_in at η 0.5 | now, η 0.5: mean, first → last batch | now, η 0.1 | now, η 0.9 | start, "
        "η 0.1 | start, η 0.5 | accumulated, η 0.5 | SPHERE takes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in plain:
        rows += [_share_row(run, weight) for weight in shares(run)]
    lines += [*folded("Layer by layer", rows), "", *_share_summary(plain), ""]
    if share_runs(runs):
        lines += ["![Share of the updates in the principal directions](figures/shares.png)", ""]
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
    strength = papers_strength(run.key.method)
    return float((2 * strength - strength**2) * shares(run)[weight][0])


def _share_summary(plain: Sequence[Run]) -> list[str]:
    taken = [_taken(run, weight) for run in plain for weight in shares(run)]
    ratios = [ratio for run in plain for ratio in share_ratios(run)]
    shorter = [1 - (1 - value) ** 0.5 for value in (min(taken), max(taken))]
    summary = (
        f"Over all these rows an update has {min(ratios):.2f} to {max(ratios):.2f} times chance in the directions that "
        f"SPHERE weakens, so SPHERE takes {min(taken):.1%} to {max(taken):.1%} of its squared norm: the update becomes "
        f"{shorter[0]:.1%} to {shorter[1]:.1%} shorter, much as if as many random directions had been weakened."
    )
    lines = []
    for run in plain:
        both = [ends(run, weight) for weight in shares(run)]
        first, last = (sum(values) / len(values) for values in zip(*both, strict=True))
        kept = run.series("principal/overlap")
        turned = f", while {1 - kept[-1][1]:.0%} of those of the start have turned away" if kept else ""
        lines.append(
            f"- {title(run)}: {first:.2f} times chance in the first batch, {last:.2f} in the last{turned}; "
            f"{_memory(run)}."
        )
    return [summary, "", *folded("From the first batch to the last", lines)]


def _memory(run: Run) -> str:
    if run.key.method == "alphaedit" or run.key.label.startswith(MEMORY):
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
    ]
    rows = [
        "| run | edits | efficacy | generalization | agreement | perplexity | change of the energy, with / without | "
        "removed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for pair in found:
        cells = []
        for name in SCORES:
            difference = pair.difference(f"val/{name}")
            cells.append("" if difference is None else _bold(difference))
        perplexities, energies = pair.value("val/perplexity"), pair.value("energy/change")
        cells.append("" if perplexities is None else f"{perplexities[0] / perplexities[1] - 1:+z.1%}")
        cells.append("" if energies is None else f"{energies[0]:+z.3%} / {energies[1]:+z.3%}")
        removed = [value for _, value in pair.sphere.series("projection/removed")]
        cells.append(f"{sum(removed) / len(removed):.1%}" if removed else "")
        rows.append(f"| {title(pair.sphere)} | {pair.edits:.0f} | {' | '.join(cells)} |")
    return [*lines, *folded(f"{len(found)} runs", rows), "", *sides(found)]


def _bold(difference: Estimate) -> str:
    return f"**{in_points(difference)}**" if difference.side else in_points(difference)


def sides(found: Sequence[Pair]) -> list[str]:
    """Which variants did better or worse than none, by their intervals."""
    differences = {title(pair.sphere): pair.difference("val/efficacy") for pair in found}
    words = {1: "Higher with SPHERE beyond doubt", -1: "Lower", 0: "Not told apart"}
    lines = ["Efficacy over all edits, run by run:", ""]
    for side, word in words.items():
        names = [name for name, difference in differences.items() if difference is not None and difference.side == side]
        lines.append(f"- {word} ({len(names)}): {'; '.join(names) or 'none'}.")
    return lines


def legend() -> str:
    """Names of SPHERE's variants and their arguments."""
    return "\n".join(f"| {name} | `{' '.join(arguments)}` |" for name, arguments in VARIANTS.items())
