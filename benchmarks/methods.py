"""Every method with and without SPHERE on 100 real CounterFact edits: `python -m benchmarks.methods --path FILE`.

One run of the command line for each cell, scored before and after. Finished cells are skipped, so an interrupted table
resumes; those that are there go into methods.json, from which `python -m benchmarks.readme` fills the table of
docs/methods.md. `--gather` does no more than that.
FILE is a CounterFact JSON, such as multi_counterfact.json. `--estimate` only says what is left and how long it takes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.cells import Cell, left_over, run_cell, run_cells
from benchmarks.measure import device_name
from sphere_pl.storage.files import write_text

RESULTS = Path(__file__).with_name("methods.json")
EDITS = 100

# Name in the table, configuration files, and seconds an edit takes on one core, start and scoring included.
METHODS: dict[str, tuple[tuple[str, ...], float]] = {
    "AlphaEdit": (("method/alphaedit",), 1.2),
    "MEMIT": (("method/memit",), 1.2),
    "MEMIT-seq": (("method/memit_seq",), 1.2),
    "RECT": (("method/memit", "callbacks/rect"), 1.2),
    "PRUNE": (("method/memit", "callbacks/prune"), 1.2),
    "EMMET": (("method/emmet",), 1.2),
    "ROME": (("method/rome",), 2.0),
    "FT": (("method/ft",), 0.9),
    "FT-L": (("method/ft_l",), 1.5),
    "LocFT-BF": (("method/locft_bf",), 0.9),
    "UltraEdit": (("method/ultraedit",), 0.5),
}
# The same for all: ten edits a batch, cheaper targets than the default run's, one validation at the end.
SHARED = (
    f"--data.limit={EDITS}",
    "--data.batch_size=10",
    "--model.contexts=1",
    "--trainer.val_check_interval=1000",
    "--model.evaluation.protocols=[teacher_forced]",
    "--model.evaluation.cases=0",
)
TARGETS = (
    "--model.targets.optimizer=adam", "--model.targets.learning_rate=0.5", "--model.targets.steps=15",
    "--model.targets.stop_loss=0.3",
)  # fmt: skip
WITHOUT_TARGETS = {"FT", "FT-L", "LocFT-BF", "UltraEdit"}
# The table was taken so, as the default run's targets were then; ROME's are the paper's.
ANCHORED = ("--model.targets.anchor=true",)
# Where the file's constant is the paper's for a model of 8 billion parameters and does nothing on this one.
MEMIT_WEIGHT = ("--model.method.init_args.second_moment_weight=1000",)
ADAPTED = dict.fromkeys(("MEMIT", "MEMIT-seq", "RECT", "PRUNE"), MEMIT_WEIGHT)


def cell(method: str, sphere: bool) -> Cell:
    """The run of a method with or without SPHERE: η = 0.5, and the paper's α, 0.5 on AlphaEdit and 0.8 on others."""
    files, cost = METHODS[method]
    arguments = [f"--config={name}" for name in ("data/counterfact", *files)]
    arguments += ["--config=callbacks/sphere" if sphere else "--config=callbacks/plain", *SHARED]
    arguments += () if method in WITHOUT_TARGETS else TARGETS
    arguments += () if method in {*WITHOUT_TARGETS, "ROME"} else ANCHORED
    arguments += ADAPTED.get(method, ())
    if sphere and method == "AlphaEdit":
        arguments.append("--projection.strength=0.5")
    if sphere and method == "PRUNE":  # it projects the restrained change itself
        arguments += ["--projection.strength=0", "--trainer.callbacks.init_args.project_strength=0.8"]
    if method == "ROME":
        arguments.append("--data.batch_size=1")
    return Cell(f"{method}-sphere" if sphere else method, tuple(arguments), EDITS, cost)


CELLS = [cell(method, sphere) for method in METHODS for sphere in (False, True)]


def row(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """What the table shows of a run."""
    energies = found.get("hyperspherical_energy", {}).values()
    totals = [sum(energy[when] or float("nan") for energy in energies) for when in ("before", "after")]
    return {
        "method": name.removesuffix("-sphere"),
        "sphere": name.endswith("-sphere"),
        "arguments": found["arguments"],
        "failed": found["failed"],
        "before": found.get("before"),
        "after": found.get("after"),
        "energy_change": totals[1] / totals[0] - 1 if energies else None,
        "seconds_per_edit": found.get("seconds_per_edit"),
    }


def main() -> None:
    """Estimate, run, gather."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, help="a CounterFact JSON")
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"), help="folder of the run folders")
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time, one thread each if more than one")
    parser.add_argument("--only", action="append", help="a cell by name, such as MEMIT or MEMIT-sphere")
    parser.add_argument("--estimate", action="store_true", help="only say what is left")
    parser.add_argument("--gather", action="store_true", help="only write methods.json from finished cells")
    args = parser.parse_args()
    if args.gather:
        gather(args.runs, args.jobs)
        return
    cells = [cell for cell in CELLS if not args.only or cell.name in args.only]
    left = left_over(cells, lambda cell: args.runs / f"{cell.name}.json", args.jobs)
    if args.estimate:
        return
    if args.path is None:
        parser.error("--path is needed to run cells: a CounterFact JSON")
    threads = 1 if args.jobs > 1 else None
    paths = [f"--data.path={args.path}"]
    run_cells(left, lambda c: run_cell(c, args.runs / c.name, args.runs / f"{c.name}.json", paths, threads), args.jobs)
    gather(args.runs, args.jobs)


def gather(runs: Path, jobs: int) -> None:
    """Write methods.json from the cells that are there; it names the others."""
    found, missing = {}, []
    for each in CELLS:
        path = runs / f"{each.name}.json"
        if path.exists():
            found[each.name] = json.loads(path.read_text(encoding="utf-8"))
        else:
            missing.append(each.name)
    if missing:
        print(f"not finished yet: {', '.join(missing)}")
    rows = [row(name, result) for name, result in found.items()]
    summary = {"device": device_name(), "jobs": jobs, "rows": rows, "missing": missing}
    write_text(RESULTS, json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
