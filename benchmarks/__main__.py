"""Measure the costs of editing: `python -m benchmarks`, one of them with `--only NAME`, JSON with `--json FILE`."""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import algebra, energy, evaluation, moments, representations, startup, targets, whole_run
from benchmarks.measure import Measurement

BENCHMARKS: dict[str, Callable[[], Measurement]] = {
    "alphaedit": algebra.alphaedit,
    "memit": algebra.memit,
    "growth": algebra.growth,
    "projection": algebra.projection,
    "z": targets.targets,
    "z-default": targets.targets_default,
    "keys": representations.keys_and_values,
    "evaluation": evaluation.evaluation,
    "moments": moments.moments,
    "whole": whole_run.whole_run,
    "startup": startup.startup,
}
SCALED: dict[str, Callable[..., Measurement]] = {  # by --scale
    "energy": energy.energy,
    "incremental": energy.incremental,
    "incremental-bfloat16": energy.incremental_half,
    "followed": energy.followed,
    "drift": energy.drift,
    "drift-bfloat16": energy.drift_half,
}
BATCHED: dict[str, Callable[..., Measurement]] = {  # by --batch
    "z": targets.targets,
    "keys": representations.keys_and_values,
}


def markdown(measurements: list[Measurement]) -> str:
    """A table of the measurements."""
    head = "| cost | times faster | asked for | share of the ceiling | seconds | measured on |"
    lines = [head, "|---|---|---|---|---|---|"]
    for m in measurements:
        share = "" if m.share_of_ceiling is None else f"{m.share_of_ceiling:.0%}"
        digits = max(0, 2 - math.floor(math.log10(m.seconds)))
        lines.append(f"| {m.name} | {m.ratio:.1f} | {m.target:g} | {share} | {m.seconds:.{digits}f} | {m.device} |")
    return "\n".join(lines)


def _run(name: str, scale: float, batch: int | None) -> Measurement:
    if name in SCALED:
        return SCALED[name](scale=scale)
    return BATCHED[name](batch=batch) if batch and name in BATCHED else BENCHMARKS[name]()


def main() -> None:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[*BENCHMARKS, *SCALED], action="append")
    parser.add_argument("--scale", type=float, default=1.0, help="sides of the matrix of the energy benchmarks, times")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--batch", type=int, help="edits in a batch for `z` and `keys`, where 100 is the papers'")
    args = parser.parse_args()
    torch.manual_seed(0)
    chosen = args.only or [*BENCHMARKS, *SCALED]
    measurements = [_run(name, args.scale, args.batch) for name in chosen]
    print(markdown(measurements))
    if args.json:
        args.json.write_text(json.dumps([m._asdict() for m in measurements], indent=1))


if __name__ == "__main__":
    main()
