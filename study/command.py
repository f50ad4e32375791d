"""The paper's claims on the default model: `python -m study --data <folder>`, at the top of a checkout.

One run of the command line for each cell, finished cells are skipped, so an interrupted study goes on where it was:

    python -m study --preset quick --data ../data         # AlphaEdit with and without SPHERE, three draws
    python -m study --preset full --data ../data          # everything
    python -m study --preset full --estimate              # only say what is left and how long it takes
    python -m study --page                                # build study/README.md from what is finished

The data folder holds counterfact_rebuilt.json and zsre_official.json. Results go to study/results, one JSON file a
cell; the page and its figures are built from these alone.
"""

import argparse
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cells import Cell, collect, finished, left_over, run_cell, run_cells
from sphere_pl.storage.files import write_text
from study.cells import MAPS, PRESETS, parse
from study.page import write_page

RESULTS = Path(__file__).with_name("results")
SOURCES = {"counterfact": "counterfact_rebuilt.json", "zsre": "zsre_official.json"}
TUNING = 400  # records that only the tuning edits
LONGEST = 6000  # records that are kept of a draw


def records(path: Path, draw: int) -> list[dict[str, Any]]:
    """The records of a draw, in its order.

    The first `TUNING` records of a fixed shuffle are draw 0, those on which settings are tuned; the other draws are
    shuffles of the rest. One paraphrase and one neighbour are kept of each: with hundreds of records that costs little
    precision and two thirds of the validation's time less.
    """
    everything = json.loads(path.read_text(encoding="utf-8"))
    random.Random(0).shuffle(everything)  # noqa: S311 (an order, not a secret)
    chosen = everything[:TUNING]
    if draw:
        chosen = everything[TUNING:]
        random.Random(draw).shuffle(chosen)  # noqa: S311
    return [_trimmed(record) for record in chosen[:LONGEST]]


def _trimmed(record: dict[str, Any]) -> dict[str, Any]:
    lists = ("paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts")
    return {name: value[:1] if name in lists else value for name, value in record.items()}


def records_file(data: str, draw: int, source: Path, runs: Path) -> Path:
    """Write a draw's records, unless they are there."""
    path = runs / f"{data}-draw{draw}.json"
    if not path.exists():
        write_text(path, json.dumps(records(source / SOURCES[data], draw)))
    return path


def result_of(cell: Cell) -> Path:
    """Where a cell's JSON is."""
    return RESULTS / f"{cell.name}.json"


def measured_costs(cells: Sequence[Cell]) -> dict[str, float]:
    """Seconds an edit takes, the mean over finished cells of the same method that had the machine for themselves."""
    found: dict[str, list[float]] = {}
    for path in RESULTS.glob("*.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        load = result.get("load", {"average": 1.0, "cores": 0})
        if result.get("edits") and load["average"] <= load["cores"]:
            found.setdefault(path.stem.split("-")[1], []).append(result["seconds"] / result["edits"])
    means = {method: sum(values) / len(values) for method, values in found.items()}
    return {cell.name: means[cell.name.split("-")[1]] for cell in cells if cell.name.split("-")[1] in means}


def run(cells: Sequence[Cell], source: Path, abilities: Path | None, runs: Path, jobs: int) -> None:
    """Run what is not finished."""

    def one(cell: Cell) -> None:
        key = parse(cell.name)
        paths = [f"--data.path={records_file(key.data, key.draw, source, runs)}"]
        if abilities and any(argument.startswith("--abilities.tasks") for argument in cell.arguments):
            paths.append(f"--abilities.data_dir={abilities}")
        drawn = runs / cell.name / "geometry"
        if MAPS in cell.arguments:
            paths.append(f"--trainer.callbacks.init_args.output_dir={drawn}")
        run_cell(cell, runs / cell.name, result_of(cell), paths, 1 if jobs > 1 else None)
        for path in sorted(drawn.glob("*.png"))[-1:]:  # of the deepest layer, after the last batch
            shutil.copyfile(path, result_of(cell).with_suffix(".png"))

    run_cells([cell for cell in cells if not finished(result_of(cell))], one, jobs)


def main() -> None:
    """Estimate, run, build the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS)
    parser.add_argument("--data", type=Path, help="folder with counterfact_rebuilt.json and zsre_official.json")
    parser.add_argument("--abilities", type=Path, help="folder of the tasks' files (docs/abilities.md); else the hub's")
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="folder of the run folders")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, one thread each if more than one")
    parser.add_argument("--only", action="append", help="a cell of the preset by name; may be repeated")
    parser.add_argument("--estimate", action="store_true", help="only say what is left")
    parser.add_argument("--collect", action="store_true", help="keep what stopped runs have measured, and run nothing")
    parser.add_argument("--page", action="store_true", help="build study/README.md")
    args = parser.parse_args()
    if args.preset:
        cells = [cell for cell in PRESETS[args.preset] if not args.only or cell.name in args.only]
        left = left_over(cells, result_of, args.jobs, measured_costs(cells))
        print("\n".join(f"  {cell.name}" for cell in left))
        if args.collect:
            for cell in left:
                collect(cell, args.runs / cell.name, result_of(cell))
        elif not args.estimate and left:
            if args.data is None:
                parser.error("--data is needed to run cells: the folder with counterfact_rebuilt.json")
            run(left, args.data, args.abilities, args.runs, args.jobs)
    if args.page:
        write_page()
