"""Measure what the callbacks of the default run cost: `python -m benchmarks.callbacks`.

Runs `python -m sphere_pl fit` in this process with a stopwatch around the hooks of every callback, and prints the time
inside the hooks of the batches as a share of what else the batches do, and that inside the others as a share of the
run; processor time where `OMP_NUM_THREADS=1`. Other arguments go to `fit`, for example `--data.limit=20`.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from rich.console import Console
from rich.table import Table

from benchmarks.measure import clock, device_name, seconds
from sphere_pl.commands.fit import run

BATCH_HOOKS = ("on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end")
OTHER_HOOKS = ("on_train_start", "on_validation_start", "on_validation_epoch_end", "on_validation_end", "on_fit_end")
MOST = 0.03


class Costs(NamedTuple):
    """Seconds inside hooks by callback, and seconds of what they are shares of."""

    batch: dict[str, float]
    other: dict[str, float]
    batches: float
    whole: float

    @property
    def added(self) -> float:
        """What all callbacks together add to a batch, as a share of the rest of it."""
        inside = sum(self.batch.values())
        return inside / (self.batches - inside)


class Stopwatch(L.Callback):
    """Puts a clock around the hooks of all other callbacks before the fit begins."""

    found: "Stopwatch | None" = None

    def __init__(self) -> None:
        self.batch: dict[str, float] = {}
        self.within: dict[str, float] = {}  # that part of it which is spent inside the module's step
        self.other: dict[str, float] = {}
        self.step: dict[str, float] = {}
        Stopwatch.found = self

    def setup(self, trainer: "L.Trainer", pl_module: "L.LightningModule", stage: str) -> None:
        """Time the module's step and each hook that a callback has of its own."""
        pl_module.training_step = timed(pl_module.training_step, self.step, "step")  # type: ignore[method-assign]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            for hooks, times in ((BATCH_HOOKS, self.batch), (BATCH_HOOKS[1:2], self.within), (OTHER_HOOKS, self.other)):
                for hook in hooks:
                    if getattr(type(callback), hook) is not getattr(L.Callback, hook):
                        setattr(callback, hook, timed(getattr(callback, hook), times, type(callback).__name__))


def timed(hook: Callable[..., Any], times: dict[str, float], name: str) -> Callable[..., Any]:
    """The hook, with its time added to `times[name]`."""
    now = clock()

    def call(*args: Any, **kwargs: Any) -> Any:
        began = now()
        try:
            return hook(*args, **kwargs)
        finally:
            times[name] = times.get(name, 0.0) + now() - began

    return call


def measure(arguments: list[str]) -> Costs:
    """Run the command once."""
    with tempfile.TemporaryDirectory() as scratch:
        watch = "--trainer.callbacks+=benchmarks.callbacks.Stopwatch"
        command, sys.argv[1:] = ["fit", f"--run_dir={scratch}/run", watch, *arguments], []
        whole = seconds(lambda: run(command))
    found = sys.modules["benchmarks.callbacks"].Stopwatch.found  # imported by name, also when this is __main__
    around = sum(found.batch.values()) - sum(found.within.values())
    return Costs(found.batch, found.other, found.step["step"] + around, whole)


def show(costs: Costs) -> None:
    """Print the shares."""
    table = Table("", "in batches, s", "share", "elsewhere, s", "share of the run", title=device_name())
    rest = costs.batches - sum(costs.batch.values())
    for name in sorted({*costs.batch, *costs.other}):
        batch, other = costs.batch.get(name, 0.0), costs.other.get(name, 0.0)
        table.add_row(name, f"{batch:.3f}", f"{batch / rest:.2%}", f"{other:.3f}", f"{other / costs.whole:.2%}")
    verdict = "yes" if costs.added < MOST else "no"
    table.add_row("all", f"{sum(costs.batch.values()):.3f}", f"{costs.added:.2%} (< {MOST:.0%}: {verdict})", "", "")
    Console(width=120).print(table)


def main() -> None:
    """Measure and print; `--json FILE` writes the seconds as well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    args, more = parser.parse_known_args()
    costs = measure(more)
    show(costs)
    if args.json:
        args.json.write_text(json.dumps({"device": device_name(), "added": costs.added, **costs._asdict()}, indent=1))


if __name__ == "__main__":
    main()
