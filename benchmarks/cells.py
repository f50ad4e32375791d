"""Tables whose cells are runs of `python -m sphere_pl fit`: one subprocess each, finished cells are skipped.

A run leaves its folder under `runs/`; what a table needs of it is kept as a small JSON file, so that tables, figures
and pages are built again without a run.
"""

import csv
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from sphere_pl.run.checkpoints import checkpoint_paths
from sphere_pl.run.lock import RunLock
from sphere_pl.storage.files import write_text

KEPT = ("val/", "batch/", "energy/mean", "energy/change", "projection/", "principal/", "shares/", "target/", "prune/",
        "rect/", "drift/", "retention/", "abilities/", "time/seconds")  # fmt: skip
STOPPED = "stopped by hand"
STARTING = 25.0  # seconds to start a process, load the model and score the unedited one


class Cell(NamedTuple):
    """One run.

    Attributes:
        name: Name of its folder and of its JSON file.
        arguments: What it adds to `python -m sphere_pl fit`, without paths of this machine.
        edits: How many edits it makes.
        cost: Seconds an edit is expected to take, validation included, before anything was measured.
    """

    name: str
    arguments: tuple[str, ...]
    edits: int
    cost: float = 1.0


def finished(results: Path) -> bool:
    """Whether a cell's JSON is there and not that of a run that was stopped on the way."""
    return results.exists() and json.loads(results.read_text(encoding="utf-8")).get("failed") != STOPPED


def collect(cell: Cell, folder: Path, results: Path) -> None:
    """Keep what an unfinished run has measured so far; the cell counts as not finished all the same."""
    if not finished(results) and (folder / "metrics.csv").exists():
        found = read_run(folder)
        if found["validations"]["edits"]:
            about = {"name": cell.name, "arguments": list(cell.arguments), "failed": STOPPED}
            write_text(results, dump(about | found))


def run_cell(cell: Cell, folder: Path, results: Path, paths: Sequence[str], threads: int | None = None) -> None:
    """Run a cell unless its JSON is there; a run that ends with a message to the user is a finding, not an error.

    A run that was cut off resumes from its last checkpoint.

    Args:
        cell: The cell.
        folder: Where the run's own files go.
        results: The JSON file to write.
        paths: Further arguments that name files of this machine; they are not kept.
        threads: Threads of the process; the machine's default if None.

    Raises:
        RuntimeError: If the run crashed, or did not start.
        UserError: If another process is writing in the folder.
    """
    if finished(results):
        return
    command = [sys.executable, "-m", "sphere_pl", "fit", *cell.arguments, *paths, f"--run_dir={folder}", "--quiet=true"]
    if (folder / "results.json").exists():  # of a run that nobody waited for, or that had other arguments
        command.append("--overwrite")
    elif checkpoint_paths(folder / "checkpoints"):
        command.append("--ckpt_path=last")  # it was cut off: a new run in its folder would be refused
    limits = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    began, load = time.monotonic(), {"average": os.getloadavg()[0], "cores": os.cpu_count()}
    environment = {"WANDB_MODE": "disabled", **os.environ, **limits}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode not in (0, 2):
        raise RuntimeError(f"{cell.name}: {' '.join(command)}\n{done.stderr[-4000:]}")
    failure = done.stderr.strip().splitlines()[-1] if done.returncode else None
    if failure and not (folder / "metrics.csv").exists():
        raise RuntimeError(f"{cell.name} did not start: {failure}")
    if failure:
        with RunLock(folder):  # what stands in a folder in which another process writes is no finding of this run
            pass
    about = {"name": cell.name, "arguments": list(cell.arguments), "failed": failure, "load": load}
    write_text(results, dump(about | read_run(folder) | {"seconds": time.monotonic() - began}))


def run_cells(
    cells: Iterable[Cell], run: Callable[[Cell], None], jobs: int = 1, clock: Callable[[str], None] = print
) -> None:
    """Run cells in their order, `jobs` at a time, saying what is done."""

    def one(cell: Cell) -> None:
        began = time.monotonic()
        run(cell)
        clock(f"{cell.name}: {time.monotonic() - began:.0f} s")

    with ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(one, cells):
            pass


def read_run(folder: Path) -> dict[str, Any]:
    """Gather what a run has left.

    Returns:
        `before`, `after` and the rest of results.json (missing if the run broke off), and the series of metrics.csv:
        `batches` and `validations`, each a table of columns with `edits` among them.
    """
    path = folder / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    wanted = ("model", "method", "edits", "before", "after", "hyperspherical_energy", "seconds_per_edit", "versions")
    found = {name: results[name] for name in wanted if name in results}
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("edits")]
    validations = [row for row in rows if row.get("val/efficacy")]
    batches = [row for row in rows if not row.get("val/efficacy")]
    return {**found, "batches": columns(batches), "validations": columns(validations)}


def columns(rows: Sequence[Mapping[str, str]]) -> dict[str, list[float | None]]:
    """Turn rows into columns of the metrics that are kept; empty cells are null, columns without numbers left out."""
    names = ["edits", *(name for name in (rows[0] if rows else {}) if name.startswith(KEPT))]
    table = {name: [_number(row.get(name)) for row in rows] for name in names}
    return {name: values for name, values in table.items() if any(value is not None for value in values)}


def _number(text: str | None) -> float | None:
    value = float(text) if text else math.nan
    return float(f"{value:.5g}") if math.isfinite(value) else None


def dump(found: Mapping[str, Any]) -> str:
    """JSON with one line for each entry, and one for each column of a table."""
    lines = []
    for name, value in found.items():
        if isinstance(value, dict) and value and name in {"batches", "validations"}:
            inner = ",\n".join(f"  {json.dumps(key)}: {json.dumps(column)}" for key, column in value.items())
            lines.append(f" {json.dumps(name)}: {{\n{inner}\n }}")
        else:
            lines.append(f" {json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def left_over(
    cells: Sequence[Cell], results: Callable[[Cell], Path], jobs: int, measured: Mapping[str, float] | None = None
) -> list[Cell]:
    """The cells that are not finished; says how many, and how long they take `jobs` at a time.

    Args:
        cells: All cells.
        results: Where a cell's JSON is.
        jobs: Cells at a time.
        measured: Seconds an edit took, by cell name, where that is known; a cell's own `cost` otherwise.
    """
    left, known = [cell for cell in cells if not finished(results(cell))], measured or {}
    seconds = sum(STARTING + cell.edits * known.get(cell.name, cell.cost) for cell in left) / jobs
    done = len(cells) - len(left)
    print(f"{done} of {len(cells)} cells are finished; the rest takes about {seconds / 60:.0f} min.")
    return left
