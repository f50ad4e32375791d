"""What a stream of edits leaves of what it asked for, from keys alone: before any model is edited.

`python -m benchmarks.arrival --path <counterfact.json> [--edits 2000]` takes the keys of real records and the second
moments of ordinary keys on the default model, unedited, and edits batch after batch with a method's own solve. What is
asked of each fact is a random value of norm 1, independent of all others. No model answers: it says what a composition
of method, regulariser and matrices gives, and what it takes from ordinary text, if keys stay where they are.

Shapes: `n` facts, `d_in` keys, `d` dimensions of the random values, `L` matrices.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.capacity import real_keys
from sphere_pl.editing.kept_moments import second_moments
from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.methods.alphaedit import AlphaEdit
from sphere_pl.methods.base import Method
from sphere_pl.methods.functional import spread_residual
from sphere_pl.methods.memit import MEMIT
from sphere_pl.methods.problem import KnownProblem
from sphere_pl.model.embedded import EMBEDDED_MODEL
from sphere_pl.model.known import known_settings
from sphere_pl.model.loading import load_language_model
from sphere_pl.progress import untracked

_DIMENSIONS = 64  # of the random values: columns of an update do not know of one another


class Arrival(NamedTuple):
    """What is left after the last batch.

    Attributes:
        first: Share of what the first batch asked for that is there right after it, along what was asked.
        last: The same of the last batch.
        share: The same of all facts, at the end.
        missing: What differs at the end from what was asked, its mean square over that of what was asked.
        disturbance: Mean squared change of the output at an ordinary key, summed over the matrices, over the same.
    """

    first: float
    last: float
    share: float
    missing: float
    disturbance: float


def arrival(
    method: Method,
    keys: Sequence[Tensor],
    moments: Sequence[Tensor],
    batch_size: int = 100,
    dimensions: int = _DIMENSIONS,
    seed: int = 0,
) -> Arrival:
    """Edit a stream with a method, matrix after matrix, on keys that stay as they are.

    Args:
        method: Solves for the updates.
        keys: Keys at each matrix, `L` tensors `[n, d_in]`.
        moments: `E[k kᵀ]` of ordinary keys at each, `L` tensors `[d_in, d_in]`.
        batch_size: Facts of a batch.
        dimensions: `d`.
        seed: Of what is asked.

    Example:
        >>> found = arrival(MEMIT(second_moment_weight=1.0), [torch.eye(4)], [torch.eye(4)], batch_size=2)
        >>> round(found.share, 3), round(found.missing, 3), round(found.disturbance, 3)
        (0.5, 0.25, 1.0)
    """
    n = len(keys[0])
    asked = torch.randn(n, dimensions, generator=torch.Generator().manual_seed(seed))
    asked = asked / asked.norm(dim=1, keepdim=True)
    weights = [each.new_zeros(dimensions, each.shape[1]) for each in keys]
    states = [method.initial_state(weight, moment) for weight, moment in zip(weights, moments, strict=True)]
    shares = []
    for start in range(0, n, batch_size):
        some = slice(start, start + batch_size)
        batch = [each[some] for each in keys]
        for place, key in enumerate(batch):
            residual = spread_residual(asked[some] - _output(weights, batch), len(keys) - place)
            weights[place] = weights[place] + method.update(KnownProblem(key, residual, weights[place]), states[place])
        problems = [KnownProblem(key, asked[some]) for key in batch]
        states = [method.remember(problem, state) for problem, state in zip(problems, states, strict=True)]
        shares.append(_along(_output(weights, batch), asked[some]))
    there = _output(weights, keys)
    moved = [weight @ moment.to(weight) * weight for weight, moment in zip(weights, moments, strict=True)]
    disturbance = sum(float(each.sum()) for each in moved)
    missing = float((asked - there).square().sum(1).mean())
    return Arrival(shares[0], shares[-1], _along(there, asked), missing, disturbance)


def _output(weights: Sequence[Tensor], keys: Sequence[Tensor]) -> Tensor:
    return torch.stack([key @ weight.T for key, weight in zip(keys, weights, strict=True)]).sum(0)


def _along(there: Tensor, asked: Tensor) -> float:
    return float((there * asked).sum(1).mean())


def compositions() -> dict[str, tuple[Method, list[int]]]:
    """What is compared: the two methods that remember, with the default model's constants and others, and matrices."""
    five: list[int] = known_settings(EMBEDDED_MODEL)["layers"]
    choices = (five[-1:], five, [five[0] - 1, *five], [*five, five[-1] + 1, five[-1] + 2])
    found: dict[str, tuple[Method, list[int]]] = {}
    for ridge in (10.0, 1.0):
        found[f"AlphaEdit, ridge {ridge:g}, layers {five[0]} to {five[-1]}"] = (
            AlphaEdit(ridge=ridge, null_space_threshold=0.02),
            five,
        )
    for weight in (2000.0, 1000.0, 300.0):
        for layers in choices:
            blocks = f"layers {layers[0]} to {layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}"
            remembering = MEMIT(second_moment_weight=weight, remember_past=True)
            found[f"MEMIT with memory, weight {weight:g}, {blocks}"] = remembering, layers
    return found


def markdown(rows: Mapping[str, Arrival]) -> str:
    """A table with a line for each composition."""
    lines = ["| composition | first batch | last batch | all | missing | taken from ordinary text |", "|---" * 6 + "|"]
    lines += [f"| {name} | {' | '.join(f'{value:.2f}' for value in each)} |" for name, each in rows.items()]
    return "\n".join(lines)


def measure(path: Path, edits: int) -> dict[str, Arrival]:
    """All compositions on the same records."""
    chosen = compositions()
    wanted = sorted({layer for _, layers in chosen.values() for layer in layers})
    _, keys = real_keys(path, edits, wanted)
    lm = load_language_model(EMBEDDED_MODEL)
    sites = lm.sites(wanted)
    corpus = StatisticsSettings(**known_settings(EMBEDDED_MODEL)["statistics"])
    known = second_moments(lm, sites, corpus, untracked)
    at = {layer: (key, known[site.name].matrix) for layer, key, site in zip(wanted, keys, sites, strict=True)}
    return {
        name: arrival(method, [at[layer][0] for layer in layers], [at[layer][1] for layer in layers])
        for name, (method, layers) in chosen.items()
    }


def main() -> None:
    """Print the table, and keep its numbers if a file is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, required=True, help="CounterFact records")
    parser.add_argument("--edits", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    given = parser.parse_args()
    rows = measure(given.path, given.edits)
    sys.stdout.write(markdown(rows) + "\n")
    if given.json is not None:
        given.json.write_text(json.dumps({name: each._asdict() for name, each in rows.items()}, indent=1), "utf-8")


if __name__ == "__main__":
    main()
