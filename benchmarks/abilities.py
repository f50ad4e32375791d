"""Score the unedited default model on every general ability: `python -m benchmarks.abilities DATA_DIR`.

Writes the scores beside this file, for the table of docs/abilities.md. Finished tasks are kept in `--keep`, so an
interrupted run resumes; tasks whose data is not in the folder are left out, and named.

    python -m benchmarks.abilities data/general --limit 200
    python -m benchmarks.abilities data/general --task boolq --show 5      # look at the answers
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.measure import device_name
from sphere_pl.abilities.evaluate import Score, answer_items, fingerprint_of, load_items, score
from sphere_pl.abilities.journal import Journal, weights_digest
from sphere_pl.abilities.task import Item, Task
from sphere_pl.abilities.tasks import TASKS
from sphere_pl.errors import UserError
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.loading import load_language_model
from sphere_pl.process.devices import default_device
from sphere_pl.progress import EditProgress

SUMMARY = Path(__file__).with_name("abilities.json")


def measure(lm: LanguageModel, task: Task, items: list[Item], journal: Journal, digest: str, show: int) -> None:
    """Score one task, unless its score is kept."""
    key = f"{digest}-{fingerprint_of(task, items)}"
    if journal.find(key) is not None and not show:
        return
    began = time.monotonic()
    # Rows that generate are many, so that a step's cost, reading the weights, is shared by many.
    given = answer_items(lm, task, items, max_tokens=24_576, track=EditProgress().phase)
    seconds = time.monotonic() - began
    journal.keep(key, score(task, items, given), task=task.name, seconds=seconds)
    for item, answer in list(zip(items, given, strict=True))[:show]:
        Console().print_json(
            data={"prompt": item.prompt, "right": item.label, "answers": item.answers, "given": answer._asdict()}
        )


def row(task: Task, items: list[Item], found: Score) -> dict[str, Any]:
    """What the table and the file say about a task."""
    labels = torch.tensor([item.label for item in items]).bincount()
    metrics = {
        name: {"value": each.value, "standard_error": each.standard_error} for name, each in found.metrics.items()
    }
    return {
        "task": task.name,
        "variant": task.variant,
        "metric": found.metric,
        "value": found.value,
        "standard_error": found.standard_error,
        "chance": task.chance,
        "commonest_label": float(labels.max() / labels.sum()) if found.metric.startswith("accuracy") else None,
        "items": found.items,
        "metrics": metrics,
    }


def main() -> None:
    """Score every task whose data is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", help="folder with the tasks' data; docs/abilities.md names the files")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", choices=TASKS, action="append")
    parser.add_argument("--show", type=int, default=0, help="print this many answers of each task")
    parser.add_argument("--kept", action="store_true", help="score nothing: write what is kept from interrupted runs")
    parser.add_argument("--keep", type=Path, default=Path("runs/abilities.json"))
    args = parser.parse_args()
    lm = load_language_model(dtype="bfloat16").to(default_device())
    journal, digest, rows = Journal(args.keep), weights_digest(lm), []
    for name in args.task or TASKS:
        try:
            items = load_items(TASKS[name], args.data_dir, args.limit, args.seed)
        except UserError as error:
            Console(stderr=True).print(f"left out: {error}", highlight=False)
            continue
        if not args.kept:
            measure(lm, TASKS[name], items, journal, digest, args.show)
        found = journal.find(f"{digest}-{fingerprint_of(TASKS[name], items)}")
        if found is not None:
            rows.append(row(TASKS[name], items, found))
            Console().print(name, rows[-1]["metrics"])
    if not args.task:
        about = {"model": "SmolLM2-135M-Instruct", "dtype": "bfloat16", "limit": args.limit, "seed": args.seed}
        summary = {**about, "device": device_name(), "tasks": rows}
        SUMMARY.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
