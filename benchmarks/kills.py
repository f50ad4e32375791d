"""Kill one run again and again: `python -m benchmarks.kills` (`--tiny` takes a tiny random model).

The same edits are made twice: once without disturbance, and once in a run that is killed (SIGKILL, which nothing can
catch) at random moments, in its set-up, its batches, its validations and its writing of checkpoints, and resumed each
time with `--ckpt_path last`. Both must leave the same bytes of edited weights and the same rows of metrics.
"""

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import device_name
from benchmarks.tiny import tiny_arguments

IN_SETUP = 0.25  # share of the kills that come before the first batch


def start(folder: Path, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a fit in its own process group."""
    command = [sys.executable, "-m", "sphere_pl", "fit", f"--run_dir={folder}", "--quiet=true", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for a fit that must end well."""
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"The run ended with status {process.returncode}:\n{errors.decode()}")


def rows(folder: Path) -> list[dict[str, str]]:
    """The logged metrics but for measured times."""
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


def batches(folder: Path) -> int:
    """How many batches a run had: the lines of its edit log after the first."""
    return len((folder / "edits.jsonl").read_text().splitlines()) - 1


def undisturbed(folder: Path, arguments: Sequence[str]) -> tuple[float, float]:
    """Run to the end; returns the seconds before the first checkpoint and all."""
    began = time.monotonic()
    process = start(folder, arguments)
    while process.poll() is None and not list(folder.glob("checkpoints/batch-*")):
        time.sleep(0.05)
    setup = time.monotonic() - began
    finish(process)
    return setup, time.monotonic() - began


def newest(folder: Path) -> str | None:
    """Name of the newest checkpoint."""
    return max((path.stem for path in folder.glob("checkpoints/batch-*")), default=None)


def survives(process: subprocess.Popen[bytes], folder: Path, setup: float, editing: float) -> bool:
    """Wait for a random moment, one time in four in the set-up, else while it edits; false if the run ends before."""
    before = newest(folder)
    in_setup = random.random() < IN_SETUP  # noqa: S311 (any moment will do)
    while not in_setup and newest(folder) == before and process.poll() is None:
        time.sleep(0.02)
    try:
        process.wait(random.uniform(0, setup if in_setup else editing))  # noqa: S311
    except subprocess.TimeoutExpired:
        return True
    return False


def disturbed(folder: Path, arguments: Sequence[str], kills: int, setup: float, editing: float) -> list[dict[str, Any]]:
    """Run to the end through the kills; returns when each came and what was on disk then.

    Args:
        folder: Of the run.
        arguments: Of the fit.
        kills: How many at most: a run may be at its end before.
        setup: Seconds until the first checkpoint.
        editing: Seconds after a checkpoint in which a kill may come.
    """
    made: list[dict[str, Any]] = []
    while len(made) < kills:
        began, process = time.monotonic(), start(folder, [*arguments, "--ckpt_path=last"])
        if not survives(process, folder, setup, editing):
            finish(process)
            return made
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        made.append({"after_seconds": round(time.monotonic() - began, 2), "newest_checkpoint": newest(folder)})
        print(f"kill {len(made)}: after {made[-1]['after_seconds']} s, {made[-1]['newest_checkpoint']}", flush=True)
    finish(start(folder, [*arguments, "--ckpt_path=last"]))
    return made


def measure(kills: int, arguments: Sequence[str], scratch: Path) -> dict[str, Any]:
    """Both runs, compared."""
    whole, killed = scratch / "whole", scratch / "killed"
    setup, total = undisturbed(whole, arguments)
    results = json.loads((whole / "results.json").read_text())
    made = disturbed(killed, arguments, kills, setup, editing=1.5 * (total - setup) / batches(whole))
    same = (whole / "edited.safetensors").read_bytes() == (killed / "edited.safetensors").read_bytes()
    return {
        "device": device_name(),
        "edits": results["edits"],
        "seconds_undisturbed": round(total, 1),
        "share_of_time_saving": results["seconds_saving"] / results["seconds_total"],
        "kills": made,
        "same_weights": same,
        "same_metrics": rows(whole) == rows(killed),
    }


def main() -> None:
    """Run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--tiny", action="store_true", help="edit a tiny random model")
    parser.add_argument("--json", type=Path, help="where to write what was found")
    args, more = parser.parse_known_args()
    random.seed(args.seed)
    os.environ.setdefault("WANDB_MODE", "disabled")
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [f"--data.limit={args.edits}", "--checkpoints.max_overhead=1", *more]
        if args.tiny:
            arguments = [*tiny_arguments(Path(scratch)), *arguments]
        found = {"tiny": args.tiny, "settings": more, **measure(args.kills, arguments, Path(scratch))}
    print(json.dumps({**found, "kills": len(found["kills"])}, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if not (found["same_weights"] and found["same_metrics"]):
        raise SystemExit("The killed run differs from the undisturbed one.")


if __name__ == "__main__":
    main()
