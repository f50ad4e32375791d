"""Build study/README.md and its figures from the results beside it; no figure in it is typed by hand."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cells import STOPPED
from sphere_pl.storage.files import write_text
from study.cells import FULL, PAIR, parse
from study.claims import title, verdicts
from study.energy import energy_section
from study.figures import changes, curves, share_curves
from study.markup import folded, shown
from study.runs import SCORES, Estimate, Run, grouped, load, pairs
from study.short import draw_effects, in_short
from study.sweep import draw_sweep, figure_name, sweep_section, sweeps
from study.table1 import COLUMNS, table1
from study.why import share_runs, why

HERE = Path(__file__).parent
RESULTS, GEOMETRY = HERE / "results", HERE / "geometry.json"
PAGE, FIGURES = HERE / "README.md", HERE / "figures"
EXTRAS = {
    "retention/": "retention by age",
    "abilities/": "general abilities",
    "generation/": "free generation",
}
RANKING = ("| run | score | efficacy | generalization | agreement | perplexity |", "|---|---|---|---|---|---|")
RANKED = 10  # runs of a ranking that stay in sight

HEAD = """# The paper's claims on a model that everyone can run

Of 29 November 2026, on one model; three models, retrieval and what to take are on
[a newer page](../docs/study.md). This page is written by `python -m study --page` from
[a file for each run](results); every figure in it comes from there. The model is the default one,
SmolLM2-135M-Instruct; the records are CounterFact requests with rebuilt paraphrases and neighbours, and ZsRE's own, so
scores on CounterFact must not be set beside published ones. Settings and what was made cheaper are in
[study/conf](conf/base.yaml). A *draw* is which records, in which order; draw 0 is for
tuning and appears in no comparison. The natural scale is edits for each input dimension of an edited matrix, 1,536
here: the paper's 15,000 on LLaMA3-8B are 1.05, so 1,600 edits here. Runs named `far` go on past that: AlphaEdit to
5,000 edits, 3.3 for each dimension, methods that wear out sooner to 2,000.

```bash
python -m study --preset quick --jobs 2 --data <folder>    # the main comparison, three draws
python -m study --preset full --jobs 2 --data <folder>     # everything; finished cells are skipped
python -m study --page                                     # this page, from what is finished
python -m pytest study                                     # the study's own tests
```
"""


def write_page() -> None:
    """Draw the figures and write the page."""
    runs = load(RESULTS)
    draw_figures(runs)
    write_text(PAGE, page(runs, json.loads(GEOMETRY.read_text(encoding="utf-8"))))


def page(runs: Sequence[Run], geometry: dict[str, Any]) -> str:
    """The page's text."""
    counted = compared(runs)
    parts = [
        HEAD,
        in_short(counted),
        claims(runs),
        table1(counted),
        table(counted),
        ranking(counted),
        energy_section(counted),
        figures(counted),
        extras(counted),
        heat_maps(counted),
        why(counted, geometry),
        sweep_section(runs),
        tuned(runs),
        what_was_run(runs),
    ]
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs that belong in one figure, by its name: with SPHERE and without on all draws, its variants apart."""
    found = {}
    for name, members in grouped(runs, lambda run: run.key.settings).items():
        found[name] = [run for run in members if run.key.variant in PAIR]
        others = {run.key.draw for run in members if run.key.variant not in PAIR}
        found[f"{name}-variants"] = [run for run in members if run.key.draw in others]
    return {name: members for name, members in found.items() if members}


def compared(runs: Sequence[Run]) -> list[Run]:
    """The runs that stand in tables and figures: not those for tuning, nor the points of the sweep."""
    return [run for run in runs if run.key.draw > 0 and not run.key.is_swept]


def draw_figures(runs: Sequence[Run]) -> None:
    """All figures of the page, and no other."""
    for earlier in FIGURES.glob("*.png"):
        earlier.unlink()
    counted = compared(runs)
    for sweep in sweeps(runs):
        draw_sweep(sweep, FIGURES / figure_name(sweep))
    for name, members in groups(counted).items():
        curves(members, FIGURES / f"{name}.png")
    if pairs(counted):
        draw_effects(counted, FIGURES / "short.png")
    plain = share_runs(counted)
    if plain:
        share_curves(plain, FIGURES / "shares.png")
        two = [run for run in counted if run.key.variant in PAIR]
        changes(grouped(two, lambda run: run.key.settings), FIGURES / "changes.png")


def claims(runs: Sequence[Run]) -> str:
    """One section for each claim."""
    found = verdicts(runs)
    lines = ["## The claims", "", "| claim | here |", "|---|---|"]
    lines += [f"| {verdict.claim} | **{verdict.word}** |" for verdict in found]
    for verdict in found:
        lines += ["", f"### {verdict.claim}", "", f"*{verdict.word.capitalize()}.* {verdict.measured}", ""]
        lines += folded("The figures", [f"- {figure}" for figure in verdict.figures or ["not measured yet"]])
        lines += ["", f"Rule: {verdict.rule}"]
    return "\n".join([*lines, ""])


def table(runs: Sequence[Run]) -> str:
    """The last validation of each run."""
    lines = [
        "## All runs",
        "",
        "Scores at a run's last validation, over all its edits, ± their standard error. Efficacy and the two after it "
        "are teacher-forced, with one paraphrase and one neighbour a record. Collapse is the first validation that "
        "falls to an efficacy below 60 %. Seconds an edit leave validation out.",
        "",
    ]
    head = [
        "| run | edits | efficacy | generalization | specificity | agreement | perplexity | energy | collapse | "
        "s/edit |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += folded(f"{len(runs)} runs", head + [_row(run) for run in runs])
    loads = [run.found.get("load") for run in runs]
    busy = sum(load is None or load["average"] > load["cores"] for load in loads)
    if busy:
        lines += ["", f"{busy} of {len(runs)} runs shared the machine with other work: their seconds are too long."]
    return "\n".join([*lines, ""])


def ranking(runs: Sequence[Run]) -> str:
    """Which runs on CounterFact hold most, the best first: after 800 edits, and after 600 in batches of ten."""
    small = [run for run in runs if "batch10" in run.key.label]
    tables = [("After 800 edits", _ranked(runs, 800)), ("After 600 edits in batches of ten", _ranked(small, 600))]
    lines = ["## What holds most", ""]
    lines += [
        "CounterFact, by the harmonic mean of efficacy, generalization and agreement. `default` has the default run's "
        "layers, contexts and targets; `stop0.3` optimises these longer, and `anchored` rescales them to the norm of "
        "the unedited states. In bold the scores that are not told apart from the best: within two standard errors of "
        "the difference.",
        "",
    ]
    for words, rows in tables:
        if rows:
            lines += [f"{words}:", "", *RANKING, *rows[:RANKED], ""]
        if rows[RANKED:]:
            lines += [*folded(f"{len(rows) - RANKED} more", [*RANKING, *rows[RANKED:]], at_most=0), ""]
    return "\n".join(lines) if tables[0][1] else ""


def _ranked(runs: Sequence[Run], edits: float) -> list[str]:
    """A row for each run that was scored after so many edits, the best first."""
    scored = [(held, run) for run in runs if run.key.data == "counterfact" and (held := run.held(edits)) is not None]
    scored.sort(key=lambda item: -item[0].value)
    return [_ranked_row(run, edits, held, scored[0][0]) for held, run in scored]


def _ranked_row(run: Run, edits: float, score: Estimate, best: Estimate) -> str:
    is_best = best.value - score.value <= 2 * math.hypot(best.error, score.error)
    return f"| {title(run)} {_cells(run, edits, score, bold=is_best)}"


def _cells(run: Run, edits: float, score: Estimate, *, bold: bool) -> str:
    """Score, its parts and perplexity, as the rest of a row."""
    parts = [f"{run.at(f'val/{name}', edits):.3f}" for name in SCORES]
    perplexity = run.at("val/perplexity", edits) or math.nan
    return f"| {shown(score, bold=bold)} | {' | '.join(parts)} | {perplexity:.1f} |"


def _row(run: Run) -> str:
    scores = []
    for name in COLUMNS:
        points = run.series(f"val/{name}")
        found = run.proportion(f"val/{name}", points[-1][0]) if points else None
        scores.append("" if found is None else shown(found))
    before = (run.found.get("before") or {}).get("perplexity")
    perplexity = "".join(f"{points[-1][1]:.1f}" for points in [run.series("val/perplexity")] if points)
    perplexity += "" if before is None else f" (from {before:.1f})"
    energy = "".join(f"{points[-1][1]:+z.3%}" for points in [run.series("energy/change")] if points)
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
            rows = [f"| run | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
            for run, values in found.items():
                cells = [f"{values[name]:.3f}" if name in values else "" for name in names]
                rows.append(f"| {run} | {' | '.join(cells)} |")
            lines += [f"## {words.capitalize()}", "", *folded(f"{len(found)} runs", rows), ""]
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
            f"![{title(run)}](results/{drawing(run).name})",
        ]
    return "\n".join([*lines, ""]) if found else ""


def drawing(run: Run) -> Path:
    """Where the heat maps of a run are, if it has drawn any."""
    return RESULTS / f"{run.key.name}.png"


def figures(runs: Sequence[Run]) -> str:
    """One figure for each method and its settings."""
    lines = ["## Over the edits"]
    for name in groups(runs):
        lines += ["", f"{name.replace('-', ', ')}:", "", f"![{name}](figures/{name}.png)"]
    return "\n".join([*lines, ""])


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
        "| candidate | edits | score | efficacy | generalization | agreement | perplexity |",
        "|---|---|---|---|---|---|---|",
    ]
    for candidates in grouped(found, lambda run: run.key.method).values():
        scored = [(held, run) for run in candidates if (held := run.held(run.last)) is not None]
        best = max(held for held, _ in scored)
        for held, run in scored:
            label = f"{run.key.method} {run.key.label} | {run.last:.0f}"
            lines.append(f"| {label} {_cells(run, run.last, held, bold=held == best)}")
    return "\n".join([*lines, ""])


def what_was_run(runs: Sequence[Run]) -> str:
    """How much of the full plan this page rests on, and what is left of it."""
    done = {run.key.name for run in runs if run.found.get("failed") != STOPPED}
    left = [cell for cell in FULL if cell.name not in done]
    unmeasured = [words for prefix, words in EXTRAS.items() if not any(extra(run, prefix) for run in runs)]
    unmeasured += [] if any(drawing(run).exists() for run in runs) else ["heat maps"]
    share = f"{len(FULL) - len(left)} of the" if left else "All"
    done_of = f"{share} {len(FULL)} cells of the full plan are finished{_versions(runs)}."
    not_measured = f" Not measured by any of them: {', '.join(unmeasured)}." if unmeasured else ""
    lines = ["## What was run", "", done_of + not_measured]
    if left:
        lines += ["", "`python -m study --preset full --jobs 2 --data <folder>` runs what is left:", ""]
        keys = [parse(cell.name) for cell in left]
        for alike, members in grouped(keys, lambda key: key._replace(variant="")).items():
            lines.append(f"- {alike.name}: {', '.join(key.variant for key in members)}")
    return "\n".join([*lines, ""])


def _versions(runs: Sequence[Run]) -> str:
    """Which builds of torch and transformers the runs had, as far as they say so."""
    known = [run.found["versions"] for run in runs if run.found.get("versions")]
    names = [", ".join(sorted({f"{name} {each[name]}" for each in known})) for name in ("torch", "transformers")]
    return f", with {' and '.join(names)}" if known else ""
