"""Real models with nothing set but their names: `python -m benchmarks.models --data <counterfact.json> NAME=PATH ...`.

For each model `python -m sphere_pl fit` edits 100 CounterFact facts in batches of 10, in a fresh process and with an
empty cache for statistics and settings: what a user's first run takes and reaches. `default` is the model that comes
with the package; tools/build_models.py builds two more where no hub can be reached. Results are written beside this
file, a model at a time.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import device_name

RESULTS = Path(__file__).with_name("models.json")
# What a model shall reach: least efficacy, generalization and agreement, most perplexity (times the unedited model's),
# seconds of the first run, and of them seconds an edit.
ASKED = {
    "SmolLM2-135M-Instruct": (0.96, 0.53, 0.77, 1.03, 150, 0.6),
    "Gemma-3-270M": (0.95, 0.40, 0.70, 1.10, 400, 2.0),
    "Qwen2.5-Coder-0.5B-Instruct": (0.97, 0.50, 0.70, 1.05, 400, 2.0),
}


def first_run(model: str, data: str, limit: int, more: list[str]) -> dict[str, Any]:
    """Edit with one model as a user does for the first time."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        arguments = [
            "--data.name=counterfact", f"--data.path={data}", f"--data.limit={limit}", "--data.batch_size=10",
            f"--model.statistics.cache_dir={scratch}/cache", f"--model.auto.cache_dir={scratch}/cache",
            f"--run_dir={folder}", *([] if model == "default" else [f"--model.name={model}"]), *more,
        ]  # fmt: skip
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "sphere_pl", "fit", *arguments], check=True)
        seconds = time.monotonic() - began
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        settings = without_folders((folder / "config.yaml").read_text(encoding="utf-8"))
    return {
        "seconds": seconds,
        "seconds_per_edit": results["seconds_per_edit"],
        "before": results["before"],
        "after": results["after"],
        "settings": settings,
    }


def without_folders(settings: str) -> str:
    """Settings with the last names of paths alone: where they lie on one machine says nothing on another.

    Example:
        >>> without_folders('path: "/data/sets/facts.json"')
        'path: "facts.json"'
    """
    return re.sub(r'"/[^"\n]*/([^"/\n]*)"', r'"\1"', settings)


def reached(run: dict[str, Any]) -> tuple[float, ...]:
    """The figures of a run, in the order of `ASKED`."""
    after, before = run["after"], run["before"]
    scores = [value_of(after[name]) for name in ("efficacy", "generalization", "neighborhood_agreement")]
    growth = value_of(after["perplexity"]) / value_of(before["perplexity"])
    return (*scores, growth, run["seconds"], run["seconds_per_edit"])


def value_of(score: Any) -> float:
    """A score's value, with or without a standard error beside it."""
    return float(score["value"] if isinstance(score, dict) else score)


def holds(figures: tuple[float, ...], asked: tuple[float, ...]) -> list[bool]:
    """Which of them are reached: the first three are least values, the others most.

    Example:
        >>> holds((1.0, 0.5, 0.7, 1.0, 100, 0.5), (0.96, 0.53, 0.7, 1.03, 150, 0.6))
        [True, False, True, True, True, True]
    """
    rounded = [round(figure, 5) for figure in figures]  # scores are single-precision numbers
    return [f >= a if place < 3 else f <= a for place, (f, a) in enumerate(zip(rounded, asked, strict=True))]


def main() -> None:
    """Run the models named, keep what they reached, show all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="name=path; `default` alone is the embedded model")
    parser.add_argument("--data", help="CounterFact, a JSON file")
    parser.add_argument("--limit", type=int, default=100)
    given, more = parser.parse_known_args()
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for entry in given.models:
        name, _, path = entry.partition("=")
        name = "SmolLM2-135M-Instruct" if name == "default" else name
        run = first_run(path or "default", given.data, given.limit, more)
        found[name] = {"device": device_name(), "limit": given.limit, **run}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    show(found)


def show(found: dict[str, Any]) -> None:
    """Print what was reached, and in brackets what was asked for."""
    table = Table("model", "efficacy", "generalization", "agreement", "perplexity", "first run, s", "s/edit")
    for name, run in found.items():
        figures, asked = reached(run), ASKED.get(name)
        cells = [f"{figure:.3g}" for figure in figures]
        if asked is not None:
            marks = zip(cells, asked, holds(figures, asked), strict=True)
            cells = [f"{cell} ({bound:g}{'' if held else ', not reached'})" for cell, bound, held in marks]
        table.add_row(name, *cells)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
