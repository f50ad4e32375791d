"""This version beside another one: `python -m benchmarks.speed --against FOLDER [ARGUMENTS OF fit]`.

FOLDER is a checkout or an unpacked wheel of the other version, such as `git worktree add ../old beaf8d7` makes. Both
run `python -m sphere_pl fit` with the same arguments in fresh processes, taking turns, after one run each that fills
the caches; ratios are of medians. What each reached stands beside its time: seconds compare only at equal quality.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.measure import device_name

HERE = Path(__file__).parents[1]
SCORES = ("efficacy", "generalization", "neighborhood_agreement")


class Taken(NamedTuple):
    """What one run took and reached.

    Attributes:
        edit: Seconds an edit, targets and solves.
        editing: Seconds between the first edit and the last, validations included.
        whole: Seconds of the process.
        scores: Efficacy, generalization, agreement and the growth of perplexity.
    """

    edit: float
    editing: float
    whole: float
    scores: tuple[float, ...]


def read(results: Mapping[str, Any], whole: float) -> Taken:
    """What a run took, from its results.json and the seconds of its process."""
    after, before = results["after"], results["before"]
    scores = (*(float(after[name]) for name in SCORES), after["perplexity"] / before["perplexity"])
    return Taken(results["seconds_per_edit"], results["seconds_total"], whole, scores)


def fit(version: Path, cache: Path, arguments: Sequence[str]) -> Taken:
    """Run a version in a process of its own.

    Args:
        version: Its folder.
        cache: Folder of second moments and of all else that is kept.
        arguments: Of `fit`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        path = os.pathsep.join([str(version), str(version / "callbacks")])
        options = [f"--run_dir={folder}", f"--model.statistics.cache_dir={cache}", *arguments]
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "sphere_pl", "fit", *options], check=True, cwd=scratch,
            env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        whole = time.monotonic() - began
        return read(json.loads((folder / "results.json").read_text(encoding="utf-8")), whole)


def in_turns(run: Callable[[Path], Taken], versions: Sequence[Path], repeats: int) -> list[list[Taken]]:
    """What each version took, run after run; the first run of each fills the caches and does not count."""
    rounds = [[run(version) for version in versions] for _ in range(repeats + 1)]
    return [list(each) for each in zip(*rounds[1:], strict=True)]


def medians(taken: Sequence[Taken]) -> tuple[float, float, float]:
    """Median seconds an edit, of editing and of the whole."""
    return (
        median(each.edit for each in taken),
        median(each.editing for each in taken),
        median(each.whole for each in taken),
    )


def main() -> None:
    """Measure both and show how many times faster this version is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="folder of the other version")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each that count")
    given, arguments = parser.parse_known_args()
    if not (given.against / "sphere_pl").is_dir():
        parser.error(f"{given.against} holds no sphere_pl: give a checkout or an unpacked wheel")
    with tempfile.TemporaryDirectory() as caches:
        kept = {version: Path(caches) / str(number) for number, version in enumerate((given.against.resolve(), HERE))}
        other, this = in_turns(lambda version: fit(version, kept[version], arguments), list(kept), given.repeats)
    show(other, this)


def show(other: Sequence[Taken], this: Sequence[Taken]) -> None:
    """Print both, and the ratios."""
    table = Table("", "the other", "this", "times faster", title=device_name(), title_justify="left")
    for name, old, new in zip(("an edit, s", "editing, s", "whole run, s"), medians(other), medians(this), strict=True):
        table.add_row(name, f"{old:.3g}", f"{new:.3g}", f"{old / new:.2f}")
    for name, old, new in zip((*SCORES, "perplexity, times"), other[-1].scores, this[-1].scores, strict=True):
        table.add_row(name, f"{old:.3f}", f"{new:.3f}", "")
    Console().print(table)


if __name__ == "__main__":
    main()
