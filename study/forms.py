"""Edits that generalize: what is learnt beside a fact's own prompt, and what that does to a wording never seen.

    python -m study.forms --data ../data               # runs what is left; finished cells are skipped
    python -m study.forms --data ../data --only chat

Each cell edits the same CounterFact facts into the default model. One paraphrase of each fact is asked afterwards and
never learnt; the other may be. Results go to study/results/forms.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

from benchmarks.cells import Cell, left_over, run_cell, run_cells
from sphere_pl.storage.files import write_text
from study.command import SOURCES
from study.marks import check_result, keep_result

RESULTS = Path(__file__).parent / "results" / "forms"
VERSION = 1  # raised whenever a cell comes to mean something else
FACTS, SEED, NEIGHBORS = 60, 5, 2
COMMON = ("--config=study/conf/forms.yaml", f"--data.limit={FACTS}")
# What stands for a prompt, a sentence whose end is missing, in the form of a question; the subject is in the prompt.
QUESTIONS = ("Question: {} what?\nAnswer:", "Fill in the gap: {} ___\nThe gap is:")
# Contexts, which file of records, and further arguments of each cell.
CELLS: dict[str, tuple[int, str, tuple[str, ...]]] = {
    "contexts2": (2, "alone", ()),
    "wording": (2, "wording", ()),
    "questions": (2, "questions", ()),
    "chat": (2, "alone", ("--data.chat=both",)),
    "contexts0": (0, "alone", ()),
    "all_forms": (2, "both", ("--data.chat=both",)),
}


def cells() -> dict[str, Cell]:
    """The cells by name."""
    return {
        name: Cell(name, (*COMMON, f"--model.contexts={contexts}", *more), FACTS)
        for name, (contexts, _, more) in CELLS.items()
    }


def records(path: Path, kind: str) -> list[dict[str, Any]]:
    """The facts, each with one paraphrase to be asked and what is learnt beside its prompt.

    Args:
        path: CounterFact records.
        kind: `alone`, `wording` (the other paraphrase), `questions` or `both`.
    """
    found = [each for each in json.loads(path.read_text(encoding="utf-8")) if _able(each)]
    random.Random(SEED).shuffle(found)  # noqa: S311 (an order, not a secret)
    return [_record(each, kind) for each in found[:FACTS]]


def _able(record: dict[str, Any]) -> bool:
    subject, paraphrases = record["requested_rewrite"]["subject"], record["paraphrase_prompts"]
    return len(paraphrases) > 1 and all(subject in each for each in paraphrases)


def _record(record: dict[str, Any], kind: str) -> dict[str, Any]:
    asked = record["requested_rewrite"]
    learnt, unseen = record["paraphrase_prompts"][:2]
    prompt = asked["prompt"].replace("{}", asked["subject"])
    wordings = [learnt] if kind in ("wording", "both") else []
    wordings += [each.replace("{}", prompt) for each in QUESTIONS] if kind in ("questions", "both") else []
    neighbors = record["neighborhood_prompts"][:NEIGHBORS]
    return {
        "prompt": asked["prompt"],
        "subject": asked["subject"],
        "target": asked["target_new"]["str"],
        "target_true": asked["target_true"]["str"],
        "paraphrases": [unseen],
        "neighbors": neighbors,
        "neighbor_answers": [asked["target_true"]["str"]] * len(neighbors),
        **({"wordings": wordings} if wordings else {}),
    }


def run_one(cell: Cell, source: Path, runs: Path) -> None:
    """Run a cell unless its result is there."""
    results = RESULTS / f"{cell.name}.json"
    if results.exists():
        check_result(results, cell, VERSION)
        return
    path = runs / f"forms-{CELLS[cell.name][1]}.jsonl"
    kept = records(source / SOURCES["counterfact"], CELLS[cell.name][1])
    write_text(path, "\n".join(map(json.dumps, kept)) + "\n")
    folder, scratch = runs / f"forms-{cell.name}", runs / f"forms-{cell.name}.json"
    scratch.unlink(missing_ok=True)
    run_cell(cell, folder, scratch, [f"--data.path={path}"])
    keep_result(results, scratch, cell, VERSION, folder)


def main() -> None:
    """Run what is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with counterfact_rebuilt.json")
    parser.add_argument("--runs", type=Path, default=Path("runs/forms"), help="folder of the run folders")
    parser.add_argument("--only", action="append", choices=CELLS, help="a cell; may be repeated")
    args = parser.parse_args()
    chosen = [cell for name, cell in cells().items() if not args.only or name in args.only]
    left = left_over(chosen, lambda cell: RESULTS / f"{cell.name}.json", 1)
    run_cells(left, lambda cell: run_one(cell, args.data, args.runs))


if __name__ == "__main__":
    main()
