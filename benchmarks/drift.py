"""What the alarm after every batch costs: `python -m benchmarks.drift`.

Runs a few batches of the default run and writes, beside this file, the processor time of the alarm as a share of a
batch's. Processor time and not wall time, so that other work on the machine weighs on both alike.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import device_name
from sphere_pl.commands.fit import run
from sphere_pl.editor import SequentialEditor
from sphere_pl.run.drift import Drift

SUMMARY = Path(__file__).with_name("drift.json")


def timed(owner: type, name: str) -> list[float]:
    """Make a method note the processor time of each call."""
    method: Callable[..., Any] = getattr(owner, name)
    spent: list[float] = []

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        try:
            return method(*args, **kwargs)
        finally:
            spent.append(time.process_time() - began)

    setattr(owner, name, wrapper)
    return spent


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=6)
    args = parser.parse_args()
    batch, alarm = timed(SequentialEditor, "training_step"), timed(Drift, "on_train_batch_end")
    with tempfile.TemporaryDirectory() as folder:
        limit = f"--data.limit={10 * args.batches}"
        run(["fit", f"--run_dir={folder}/run", limit, "--trainer.val_check_interval=1000", "--quiet=true"])
    seconds, each = statistics.median(batch), statistics.median(alarm)
    summary = {"device": device_name(), "seconds_per_batch": seconds, "seconds": each, "share": each / seconds}
    SUMMARY.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(summary)


if __name__ == "__main__":
    main()
