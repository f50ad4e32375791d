"""What lasts longest: the compositions that were taken as far as any, against the goal that was set for them."""

import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.figure import Figure

from sphere_pl.report.style import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, SKY, VERMILLION
from study.comparison import MODELS, Result, find, lengths, of_model
from study.figures import save
from study.tables import apart, percent

MODEL = "smollm2_135m"
ELSEWHERE = 1000  # edits from which on a stream on another model is told of
BY_PROBABILITY, BY_ARGMAX, PERPLEXITY = 0.85, 0.80, 1.3  # the goal after all edits
AGES = ("earliest", "middle", "latest")


def longest(results: Sequence[Result]) -> list[Result]:
    """The runs with the most edits on the default model, those that ended."""
    found = of_model(results, MODEL)
    return [each for each in found[lengths(_mine(results))[-1]] if not each.broke] if found else []


def _mine(results: Sequence[Result]) -> list[Result]:
    return [each for each in results if each.key.model == MODEL]


def series(each: Result, name: str) -> list[tuple[int, float]]:
    """A score at every validation: edits and value."""
    table = each.found.get("validations", {})
    points = zip(table.get("edits", ()), table.get(name, ()), strict=True) if name in table else ()
    return [(int(edits), value) for edits, value in points if value is not None]


def reaches(each: Result) -> bool:
    """Whether a run reaches all of the goal."""
    return (
        each.after("probability/efficacy") >= BY_PROBABILITY
        and each.share("own").value >= BY_ARGMAX
        and each.perplexity < PERPLEXITY
    )


def lasting_table(rows: Sequence[Result]) -> list[str]:
    """A line for each run: how many facts hold as the stream goes on, and what is left at its end."""
    steps = [*dict(series(rows[0], "val/efficacy"))] if rows else []
    head = [*(f"after {edits:,}" for edits in steps), "by probability", "oldest, middle, newest third"]
    head += ["in other words", "others as before", "perplexity", "KL", "holds at the end, minus AlphaEdit's"]
    lines = [f"| composition | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    return [*lines, *(_row(each, find(rows, "alphaedit")) for each in rows)] if rows else []


def _row(each: Result, reference: Result | None) -> str:
    looks: dict[int, list[float]] = {}
    for edits, value in series(each, "val/efficacy"):
        looks.setdefault(edits, []).append(value)
    # After the last one there may be two: before failed facts were edited again, and after it.
    cells = [" → ".join(f"{value:.2f}" for value in dict.fromkeys((seen[0], seen[-1]))) for seen in looks.values()]
    cells += [
        f"{each.after('probability/efficacy'):.2f}",
        ", ".join(f"{series(each, f'retention/{age}/efficacy')[-1][1]:.2f}" for age in AGES),
        percent(each.share("paraphrase")),
        percent(each.share("neighbor")),
        f"x{each.perplexity:.2f}",
        f"{(each.found['batches'].get('drift/kl') or [math.nan])[-1]:.2f}",
        "" if reference in (None, each) else apart(each.against(reference, "own")),
    ]
    return f"| {each.name} | {' | '.join(cells)} |"


def lasting_words(rows: Sequence[Result]) -> str:
    """What was asked for, and what each run reaches of it."""
    if not rows:
        return ""
    edits = rows[0].key.edits
    reached = [each.name for each in rows if reaches(each)]
    shares = [(each.after("probability/efficacy"), each.share("own").value, each.perplexity) for each in rows]
    found = "; ".join(
        f"{each.name} {probable:.2f}, {said:.2f} and x{perplexity:.2f}"
        for each, (probable, said, perplexity) in zip(rows, shares, strict=True)
    )
    verdict = (
        f"{' and '.join(reached)} reach{'es' * (len(reached) == 1)} all three" if reached else "none reaches all three"
    )
    return (
        f"Asked for were, over all of {edits:,} edits, at least {BY_PROBABILITY:.2f} by probability (the new object is "
        f"likelier than the old), {BY_ARGMAX:.2f} by argmax (it is what the model says), and a perplexity below "
        f"{PERPLEXITY} times the unedited model's. Found: {found}. So {verdict}."
    )


def lasting_short(rows: Sequence[Result]) -> str:
    """The recommended one beside what holds most at the end, in a line."""
    if not rows:
        return "No run was long enough to say."
    best = max(rows, key=lambda each: each.share("own").value)
    usual = find(rows, "alphaedit") or best
    again = find(rows, "alphaedit", "retry")
    both = list({each.key: each for each in (usual, again, best) if each is not None}.values())
    shares = " and ".join(
        f"{each.share('own').value:.0%} with {each.name} (perplexity x{each.perplexity:.2f})" for each in both
    )
    return f"Of {best.key.edits:,} facts, edited batch after batch, the default model still says {shares}."


def lasting_elsewhere(results: Sequence[Result]) -> str:
    """What AlphaEdit leaves of the longest streams on the other models, in a line; empty before they were run."""
    said = []
    for model in [*MODELS][1:]:
        edits, rows = max(of_model(results, model).items(), default=(0, []))
        alone = find(rows, "alphaedit")
        if alone is not None and not alone.broke and edits >= ELSEWHERE:
            share = alone.share("written").value
            said.append(f"{share:.0%} of {edits:,} on {MODELS[model]} (perplexity x{alone.perplexity:.2f})")
    return f" With AlphaEdit, {' and '.join(said)}, whose layers and constants nobody searched for." if said else ""


def draw_lasting(rows: Sequence[Result], path: Path) -> Path:
    """Two panels over the number of edits: the share of facts that hold, and the perplexity."""
    figure = Figure(figsize=(9, 3.6 + 0.13 * len(rows)), dpi=100, layout="constrained")
    held, perplexity = figure.subplots(1, 2)
    for each, color in zip(rows, cycle((BLUE, VERMILLION, GREEN, ORANGE, INK, PURPLE, SKY)), strict=False):
        held.plot(*zip(*series(each, "val/efficacy"), strict=True), "o-", color=color, label=each.name)
        before = each.found["before"]["perplexity"]
        points = [(edits, value / before) for edits, value in series(each, "val/perplexity")]
        perplexity.plot(*zip(*points, strict=True), "o-", color=color)
    for panel, goal, title in (
        (held, BY_ARGMAX, "share of all facts so far that the model says"),
        (perplexity, PERPLEXITY, "perplexity, times the unedited model's"),
    ):
        panel.axhline(goal, color=FAINT, linestyle=":")
        panel.set_title(f"{title} (dotted: the goal)", loc="left", fontsize=10)
        panel.set_xlabel("edits")
        panel.spines[["top", "right"]].set_visible(False)
    held.set_ylim(0.5, 1.0)
    figure.legend(loc="outside lower left", frameon=False, fontsize=9, ncols=2)
    return save(figure, path)
