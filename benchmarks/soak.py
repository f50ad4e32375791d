"""Many real edits in one run: `python -m benchmarks.soak --path counterfact.json --edits 2000`.

Starts `python -m sphere_pl fit` and looks at its process from outside: resident memory, open files and processor time
over the edits. Memory and open files shall stay flat from the 200th edit on, and so shall the cost of an edit; it is
processor time, so that other work on the machine weighs less. Validations are left out but for one at the end, since
they grow with the number of edits.
"""

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import device_name


def look(pid: int) -> dict[str, float]:
    """Resident bytes, open files and seconds of processor time of a process (Linux)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]  # in user and in kernel mode
    return {
        "resident_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "open_files": len(os.listdir(f"/proc/{pid}/fd")),
        "processor_seconds": sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"),
    }


def rows(path: Path) -> list[dict[str, str]]:
    """The logged rows that tell the cost of a batch."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row.get("time/seconds")]


def watch(process: subprocess.Popen[bytes], folder: Path, every: float) -> list[dict[str, float]]:
    """Sample the process after each batch until it ends."""
    samples: list[dict[str, float]] = []
    while process.poll() is None:
        time.sleep(every)
        done = rows(folder / "metrics.csv")
        if not done or (samples and samples[-1]["edits"] == float(done[-1]["edits"])):
            continue
        try:
            seen = look(process.pid)
        except OSError:  # it has just ended
            break
        samples.append({"edits": float(done[-1]["edits"]), **seen})
    return samples


def summary(samples: list[dict[str, float]]) -> dict[str, Any]:
    """What grew from the 200th edit to the last, and the processor seconds of an edit in the first and last quarter."""
    settled = [sample for sample in samples if sample["edits"] >= 200] or samples
    quarter = max(1, len(settled) // 4)

    def cost(part: list[dict[str, float]]) -> float:
        edits = part[-1]["edits"] - part[0]["edits"]
        return (part[-1]["processor_seconds"] - part[0]["processor_seconds"]) / edits if edits else math.nan

    return {
        "memory_growth": settled[-1]["resident_bytes"] / settled[0]["resident_bytes"] - 1,
        "open_files": [settled[0]["open_files"], settled[-1]["open_files"]],
        "seconds_per_edit_early": cost(settled[: quarter + 1]),
        "seconds_per_edit_late": cost(settled[-quarter - 1 :]),
    }


def main() -> None:
    """Run, watch, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", help="a CounterFact file; the built-in facts if left out")
    parser.add_argument("--edits", type=int, default=2000)
    parser.add_argument("--batch_size", type=int, default=20)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between looks")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("soak.json"))
    args, more = parser.parse_known_args()
    data = ["--data.name=counterfact", f"--data.path={args.path}"] if args.path else []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        command = [
            sys.executable, "-m", "sphere_pl", "fit", f"--run_dir={folder}", *data, f"--data.limit={args.edits}",
            f"--data.batch_size={args.batch_size}", "--trainer.val_check_interval=1000000", *more,
        ]  # fmt: skip
        process = subprocess.Popen(command)
        samples = watch(process, folder, args.every)
        if process.wait():
            raise SystemExit(f"The run ended with status {process.returncode}.")
    found = {"device": device_name(), "edits": args.edits, "arguments": more, **summary(samples), "samples": samples}
    args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in found.items() if name != "samples"}, indent=1))


if __name__ == "__main__":
    main()
