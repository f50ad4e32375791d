"""Build docs/study.md and its figures from the committed results: `python -m study.summary`.

The words that no result changes stand in summary.md, with the places of those that are filled in.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.capacity import Capacity
from benchmarks.capacity import markdown as capacity_table
from sphere_pl.storage.files import write_text
from study import confirmation
from study.chart import draw_comparison, draw_effects
from study.command import RESULTS as EARLIER
from study.comparison import MODELS, RUN, Result, find, fullest, of_model, read_all, sphere_pairs
from study.confirmation import confirmation_table
from study.energy_part import answer, effects
from study.families import cells_of, read_spec
from study.forgetting import forgetting_table, read_forgotten
from study.forms_table import forms_section, in_short, read_forms
from study.lasting import draw_lasting, lasting_elsewhere, lasting_short, lasting_table, lasting_words, longest
from study.orders import orders_of, orders_table, orders_words
from study.page import compared
from study.recommendation import AGAIN, RECOMMENDED, RIVAL, longer, recommendation, stronger, told_apart
from study.runs import Run, grouped, load
from study.tables import apart, sphere_table, verdict_table

ROOT = Path(__file__).parents[1]
PAGE, WORDS = ROOT / "docs" / "study.md", Path(__file__).with_name("summary.md")
FIGURES = Path(__file__).parent / "models"  # not among the earlier page's: its command removes what it did not draw
CAPACITY = ROOT / "benchmarks" / "capacity.json"


def write_page() -> None:
    """Draw the figures and write the page."""
    results, runs = read_all(read_spec()), load(EARLIER)
    draw_comparison(results, FIGURES / "comparison.png")
    draw_effects(effects(results, compared(runs)), FIGURES / "sphere.png")
    if longest(results):
        draw_lasting(longest(results), FIGURES / "lasting.png")
    write_text(PAGE, page(results, runs))


def page(results: Sequence[Result], runs: Sequence[Run]) -> str:
    """The page's text.

    Args:
        results: Those of the comparison over models.
        runs: Those of the earlier study.
    """
    models = {each.key.model for each in results}
    paired = {
        "smollm2_135m",
        *(plain.key.model for plain, _ in sphere_pairs(results)),
    }  # the earlier study's among them
    held, lasting = read_capacity(), longest(results)
    orders = orders_of(results, RECOMMENDED, RIVAL)
    parts = {
        "cells": len(results),
        "models": len(models),
        "earlier": len(runs),
        "said": "\n".join(_said(results, model) for model in MODELS if of_model(results, model)),
        "told_apart": told_apart(results),
        "recommendation": recommendation(results, read_spec()),
        "stronger": stronger(results, read_spec()),
        "longer": longer(runs),
        "verdicts": "\n".join(line for model in MODELS for line in verdict_table(results, model)),
        "retrieval": _retrieval(results),
        "processors": processors(results),
        "orders_words": orders_words(results, orders),
        "orders": "\n".join(orders_table(orders)),
        "lasting_short": lasting_short(lasting) + lasting_elsewhere(results),
        "lasting_words": lasting_words(lasting),
        "lasting": "\n".join(lasting_table(lasting)),
        "forgetting": "\n".join(forgetting_table(read_forgotten())),
        "confirmation": confirmation_table(confirmation.read_results()),
        "answer": answer(effects(results, compared(runs)), len(paired)),
        "pairs": "\n".join(sphere_table(results)),
        "capacity_words": capacity_words(held),
        "capacity": capacity_table(list(held.items())),
        "unseen": in_short(read_forms()),
        "forms": forms_section(),
        **_left(results),
    }
    return WORDS.read_text(encoding="utf-8").format(**parts).replace("\n\n\n", "\n\n")


def _said(results: Sequence[Result], model: str) -> str:
    """What a model's panel says, in a line."""
    rows = fullest(results, model)
    kinds = (("alphaedit", AGAIN), ("alphaedit", "plain"), ("memit_seq", "plain"), ("scr_unconfirmed", "plain"))
    found = [find(rows, *each) for each in kinds]
    words = [
        f"{each.name} holds {each.held()[0]}, {each.held('written_paraphrase')[0]} in other words, and leaves "
        f"{each.held('neighbor')[0]} questions on other things as they were"
        for each in found
        if each is not None and not each.broke
    ]
    return f"- **{MODELS[model]}**, {rows[0].key.edits} facts: {'; '.join(words)}."


def _retrieval(results: Sequence[Result]) -> str:
    """Retrieval minus editing on every model, after as many edits as both were run on at most, in a line."""
    words = []
    for model in MODELS:
        pairs = [(find(rows, "scr_unconfirmed"), find(rows, "alphaedit")) for rows in of_model(results, model).values()]
        both = [(read, edited) for read, edited in pairs if read is not None and edited is not None]
        if both:
            read, edited = both[-1]
            kinds = ("written", "written_paraphrase", "neighbor")
            cells = [apart(read.against(edited, kind)).split(",")[0] for kind in kinds]
            where = f"{MODELS[model]}, {read.key.edits} facts"
            words.append(f"{where}: {cells[0]}, in other words {cells[1]}, others as before {cells[2]}")
    return "; ".join(words)


def processors(results: Sequence[Result]) -> str:
    """Which runs were made where bfloat16 is multiplied in float32; empty if none says so."""
    there = [each for each in results if not each.found.get("bfloat16_units", True)]
    if not there:
        return ""
    models = grouped(there, lambda each: MODELS[each.key.model]).items()
    names = "; ".join(f"{model}'s {', '.join(dict.fromkeys(each.name for each in some))}" for model, some in models)
    return (
        f"{names} ran on a processor without units for bfloat16 that are faster than those for float32, in which "
        "products are taken then and rounded "
        "([Speed](speed.md#what-a-processor-without-units-for-bfloat16-does)): from the other rows they differ by "
        "that rounding as well, whose part was not measured by itself. "
    )


def read_capacity(path: Path = CAPACITY) -> dict[str, Capacity]:
    """What `python -m benchmarks.capacity --json` has written; its ridges are numbers again."""
    found = json.loads(path.read_text(encoding="utf-8"))
    ridges = {name: {float(ridge): share for ridge, share in each["missing"].items()} for name, each in found.items()}
    return {name: Capacity(**{**each, "missing": ridges[name]}) for name, each in found.items()}


def capacity_words(held: dict[str, Capacity]) -> str:
    """What rank and interference of many keys say."""
    alone, together = held["layer 6"], held["5 from layer 2"]
    return (
        f"{alone.keys:,} CounterFact keys of the default model in {alone.dimensions:,} input dimensions a matrix "
        f"(`python -m benchmarks.capacity`). One matrix cannot give each key a value of its own: their rank is "
        f"{alone.rank:,}, and least squares misses {alone.missing[1e-3]:.0%} of changes that are independent of each "
        f"other with hardly any ridge. Five matrices can: rank {together.rank:,} in {together.dimensions:,}, "
        f"{together.missing[1e-3]:.1%} missing at a ridge of 0.001 of the keys' mean squared norm, "
        f"{together.missing[1e-1]:.0%} at 0.1. So rank does not forbid an efficacy of 0.85 over {alone.keys:,} edits; "
        "the ridge that spares the rest of the model stands against it, and each further layer lowers what is missing "
        "at a given ridge. Facts need not have all of their change to hold, so these shares bound changes, not answers."
    )


def _left(results: Sequence[Result]) -> dict[str, str | int]:
    """How much is not run."""
    spec, known = read_spec(), {each.key for each in results}
    left = [key.name for stage in RUN for key in cells_of(spec, stage) if key not in known]
    whole = sum(len(cells_of(spec, stage)) for stage in ("main", "long"))
    return {"whole": whole, "left": ", ".join(dict.fromkeys(left)) or "nothing is left"}


if __name__ == "__main__":
    write_page()
