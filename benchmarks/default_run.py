"""Measure the README's first command: `python -m benchmarks.default_run`.

Runs `python -m sphere_pl fit` in a fresh process with everything cached and writes its results and picture beside this
file; then runs it twice more over 20 edits and checks that both leave the same file of edited weights, byte for byte.
`--identity` does the second part alone.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import device_name
from benchmarks.picture import summary_picture

SUMMARY = Path(__file__).with_name("default_run.json")


def fit(folder: Path, arguments: list[str]) -> float:
    """Run the command; returns its wall time."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "sphere_pl", "fit", f"--run_dir={folder}", *arguments], check=True)
    return time.monotonic() - began


def checks(results: dict[str, dict[str, float]], seconds: float, memory: float) -> list[tuple[str, float, str, bool]]:
    """What the run shall reach: name, figure, bound, whether it holds."""
    after, before = results["after"], results["before"]
    growth = after["perplexity"] / before["perplexity"]
    return [
        ("efficacy", after["efficacy"], ">= 0.95", after["efficacy"] >= 0.95),
        ("generalization", after["generalization"], ">= 0.50", after["generalization"] >= 0.50),
        (
            "neighborhood agreement",
            after["neighborhood_agreement"],
            ">= 0.75",
            after["neighborhood_agreement"] >= 0.75,
        ),
        ("perplexity, times the unedited model's", growth, "<= 1.10", growth <= 1.10),
        ("wall time, minutes", seconds / 60, "<= 4", seconds <= 240),
        ("peak memory, GB", memory / 1e9, "<= 4", memory <= 4e9),
    ]


def main() -> None:
    """Run, compare, write, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identity", action="store_true", help="only check that two runs leave the same weights")
    args, more = parser.parse_known_args()
    if not args.identity:
        measure(more)
    summary = json.loads(SUMMARY.read_text(encoding="utf-8"))
    summary["identical_weights_in_two_runs"] = identical(more)
    SUMMARY.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    show(summary)


def identical(more: list[str]) -> bool:
    """Whether two runs over 20 edits write the same bytes."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / "first", Path(scratch) / "second"]
        for folder in folders:
            fit(folder, ["--data.limit=20", "--trainer.val_check_interval=1000", *more])
        first, second = ((folder / "edited.safetensors").read_bytes() for folder in folders)
    return first == second


def measure(more: list[str]) -> None:
    """Run once, and write what it reached."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        seconds = fit(folder, more)
        # Of all finished children, that is of this run alone.
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        found = checks(results, seconds, memory)
        summary = {
            "device": device_name(),
            "seconds": seconds,
            "checks": [{"name": n, "figure": f, "bound": b, "holds": h} for n, f, b, h in found],
            "results": results,
        }
        SUMMARY.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        summary_picture(folder, SUMMARY.with_suffix(".png"))


def show(summary: dict[str, Any]) -> None:
    """Print what was reached against what was asked for."""
    table = Table("", "reached", "asked for", "holds", title=summary["device"], title_justify="left")
    for check in summary["checks"]:
        table.add_row(check["name"], f"{check['figure']:.3f}", check["bound"], "yes" if check["holds"] else "no")
    same = summary["identical_weights_in_two_runs"]
    table.add_row("two runs leave the same weights", str(same), "True", "yes" if same else "no")
    Console().print(table)


if __name__ == "__main__":
    main()
