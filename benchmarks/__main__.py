"""Measure the costs of editing: `python -m benchmarks`, one of them with `--only NAME`, JSON with `--json FILE`.

A file that exists keeps its rows of other names, so costs can be measured one by one.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import algebra, energy, evaluation, moments, representations, startup, targets, whole_run
from benchmarks.language_models import DEFAULT, SHAPES, fitting_model
from benchmarks.measure import Measurement

BENCHMARKS: dict[str, Callable[..., Measurement]] = {
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
    "step": whole_run.step,
    "startup": startup.startup,
}
SCALED: dict[str, Callable[..., Measurement]] = {  # by --scale
    "energy": energy.energy,
}
BATCHED = {"z", "keys", "step"}  # by --batch
REPEATED = {"z", "z-default", "keys", "whole", "step"}  # by --repeats
MODELLED = {"z", "z-default", "keys", "evaluation", "moments", "whole", "step"}  # by --model


def markdown(measurements: list[Measurement]) -> str:
    """A table of the measurements."""
    head = "| cost | times faster | asked for | share of the ceiling | seconds | measured on |"
    lines = [head, "|---|---|---|---|---|---|"]
    for m in measurements:
        share = "" if m.share_of_ceiling is None else f"{m.share_of_ceiling:.0%}"
        digits = max(0, 2 - math.floor(math.log10(m.seconds)))
        lines.append(f"| {m.name} | {m.ratio:.1f} | {m.target:.2g} | {share} | {m.seconds:.{digits}f} | {m.device} |")
    return "\n".join(lines)


def merged(path: Path, measurements: list[Measurement]) -> list[dict[str, Any]]:
    """What a file holds, with what was measured now in place of the rows of the same name; new rows come last."""
    rows = {row["name"]: row for row in (json.loads(path.read_text(encoding="utf-8")) if path.exists() else [])}
    return list((rows | {m.name: m._asdict() for m in measurements}).values())


def _run(name: str, args: argparse.Namespace) -> Measurement:
    if name in SCALED:
        return SCALED[name](scale=args.scale)
    chosen: dict[str, Any] = {"model": args.model} if name in MODELLED else {}
    if args.batch and name in BATCHED:
        chosen["batch"] = args.batch
    if args.repeats and name in REPEATED:
        chosen["repeats"] = args.repeats
    return BENCHMARKS[name](**chosen)


def main() -> None:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[*BENCHMARKS, *SCALED], action="append")
    parser.add_argument("--scale", type=float, default=1.0, help="sides of the matrix of the energy benchmarks, times")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--batch", type=int, help="edits in a batch for `z`, `keys` and `step`, where 100 is the papers'"
    )
    parser.add_argument("--repeats", type=int, help="turns that `z`, `z-default`, `keys`, `whole` and `step` take")
    parser.add_argument(
        "--model",
        choices=[DEFAULT, *SHAPES],
        default=fitting_model(),
        help="random weights in the shapes of a large model; without it the default model, LLaMA3-8B's on a GPU",
    )
    parser.add_argument("--profile", action="store_true", help="only show where the time of `step` goes")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.profile:
        print(whole_run.profile_step(args.batch or 100, args.model))
        return
    chosen = args.only or [name for name in (*BENCHMARKS, *SCALED) if name != "step" or args.model != DEFAULT]
    measurements = [_run(name, args) for name in chosen]
    print(markdown(measurements))
    if args.json:
        args.json.write_text(json.dumps(merged(args.json, measurements), indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
