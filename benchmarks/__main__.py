"""Measure the costs of editing: `python -m benchmarks`, one of them with `--only NAME`, JSON with `--json FILE`."""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import algebra, evaluation, representations, targets
from benchmarks.measure import Measurement

BENCHMARKS: dict[str, Callable[[], Measurement]] = {
    "alphaedit": algebra.alphaedit,
    "memit": algebra.memit,
    "growth": algebra.growth,
    "projection": algebra.projection,
    "z": targets.targets,
    "keys": representations.keys_and_values,
    "evaluation": evaluation.evaluation,
}


def markdown(measurements: list[Measurement]) -> str:
    """A table of the measurements."""
    lines = ["| cost | times faster | asked for | share of the ceiling | seconds |", "|---|---|---|---|---|"]
    for m in measurements:
        share = "" if m.share_of_ceiling is None else f"{m.share_of_ceiling:.0%}"
        digits = max(0, 2 - math.floor(math.log10(m.seconds)))
        lines.append(f"| {m.name} | {m.ratio:.1f} | {m.target:g} | {share} | {m.seconds:.{digits}f} |")
    return "\n".join([*lines, "", measurements[0].device])


def main() -> None:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=BENCHMARKS, action="append")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    measurements = [BENCHMARKS[name]() for name in args.only or BENCHMARKS]
    print(markdown(measurements))
    if args.json:
        args.json.write_text(json.dumps([m._asdict() for m in measurements], indent=1))


if __name__ == "__main__":
    main()
