"""Build docs/study.md and its figures from the committed results: `python -m study.summary`; no figure is typed by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.capacity import Capacity, markdown
from sphere_pl.storage.files import write_text
from study import forms
from study.chart import draw_comparison, draw_effects
from study.comparison import MODELS, RUN, Result, find, of_model, read_all, sphere_pairs
from study.energy_part import answer, effects
from study.families import cells_of, read_spec
from study.page import compared
from study.recommendation import recommendation
from study.runs import RESULTS as EARLIER
from study.runs import Run, load
from study.tables import apart, sphere_table, verdict_table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "study.md"
FIGURES = Path(__file__).parent / "figures"
COMPARISON, EFFECTS = FIGURES / "models.png", FIGURES / "sphere.png"
CAPACITY = ROOT / "benchmarks" / "capacity.json"


def write_page() -> None:
    """Draw both figures and write the page."""
    results, runs = read_all(read_spec()), compared(load(EARLIER))
    draw_comparison(results, COMPARISON)
    draw_effects(effects(results, runs), EFFECTS)
    write_text(PAGE, page(results, runs))


def page(results: Sequence[Result], runs: Sequence[Run]) -> str:
    """The page's text."""
    capacity = {name: Capacity(**found) for name, found in json.loads(CAPACITY.read_text(encoding="utf-8")).items()}
    parts = [
        in_short(results, runs),
        verdicts(results),
        energy(results, runs),
        room(capacity),
        forms.section(),
        not_run(results),
    ]
    return "\n".join(part for part in parts if part).rstrip() + "\n"
