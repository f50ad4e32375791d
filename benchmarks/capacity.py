"""What a few matrices can hold: rank and interference of many keys in few dimensions.

`python -m benchmarks.capacity --path <counterfact.json> [--edits 2000]` measures the keys of real records on the
default model, unedited, at the layers that it is edited at, and prints a table.

An edit asks a matrix for a change of its output at a key. Changes that are asked at `n` keys independently of each
other can all be made only if the keys are independent, and cost more the less they are: the numbers say how much.

Shapes: `n` keys, `d_in` their dimensions, `L` matrices.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sphere_pl.data.datamodule import EditDataModule
from sphere_pl.editing.representations import SubjectStream
from sphere_pl.model.embedded import EMBEDDED_MODEL
from sphere_pl.model.known import known_settings
from sphere_pl.model.loading import load_language_model

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # of the keys' mean squared norm
_ZERO = 1e-5  # of the largest singular value, where float32 keys end


class Capacity(NamedTuple):
    """What one matrix, or several together, can do at some keys.

    Attributes:
        keys: `n`.
        dimensions: `d_in`, over all matrices together.
        rank: Of the keys, counted above float32's rounding.
        effective: `(Σ s²)² / Σ s⁴` with the singular values s: of how many directions of one strength the keys are
            like.
        crosstalk: `Σ_{j≠i} cos²(k_i, k_j)`, mean over the keys: what the other edits, written as outer products and
            independent of each other, leave at a key, against what its own writes there.
        missing: Share of the changes, if they are independent of each other, that least squares cannot make, by the
            ridge, a multiple of the keys' mean squared norm: `1 - tr(K Kᵀ (K Kᵀ + ridge)⁻¹) / n`.
    """

    keys: int
    dimensions: int
    rank: int
    effective: float
    crosstalk: float
    missing: dict[float, float]


def capacity(keys: Sequence[Tensor], ridges: Sequence[float] = RIDGES) -> Capacity:
    """The capacity of `L` matrices that are edited together: their changes of the output add up.

    Least squares that spreads a change over the matrices is least squares in all their dimensions, with the keys side
    by side. Keys are scaled to a mean squared norm of 1 at each matrix, so that none of them does all of the work for
    being large.

    Args:
        keys: Keys at each matrix, `L` tensors `[n, d_in]`; one for one matrix alone.
        ridges: Of which the shares that are missing are asked for.

    Example:
        >>> found = capacity([torch.eye(4)[[0, 1, 1]]], ridges=[1e-9])
        >>> found.rank, round(found.missing[1e-9], 6), round(found.crosstalk, 6)
        (2, 0.333333, 0.666667)
    """
    scaled = [each.double() / each.double().square().sum(1).mean().sqrt() for each in keys]
    beside = torch.cat(scaled, dim=1) / len(scaled) ** 0.5
    n = len(beside)
    squares = torch.linalg.eigvalsh(beside @ beside.T).clamp(min=0)  # s², ascending
    cosines = normalize(beside) @ normalize(beside).T
    return Capacity(
        n,
        beside.shape[1],
        int((squares > _ZERO**2 * squares[-1]).sum()),
        float(squares.sum() ** 2 / squares.square().sum()),
        float((cosines.square().sum() - n) / n),
        {ridge: float(1 - (squares / (squares + ridge)).sum() / n) for ridge in ridges},
    )


def real_keys(path: Path, edits: int, layers: Sequence[int] | None = None) -> tuple[list[int], list[Tensor]]:
    """Keys of CounterFact requests on the default model, plain prompts, at each layer that it is edited at."""
    data = EditDataModule(name="counterfact", path=str(path), limit=edits)
    data.setup("fit")
    chosen = list(layers or known_settings(EMBEDDED_MODEL)["layers"])
    lm = load_language_model(EMBEDDED_MODEL)
    sites = lm.sites(chosen)
    return chosen, list(SubjectStream(lm, data.requests, [""], sites[0].layer, 1024).all_keys(sites))


def markdown(rows: Sequence[tuple[str, Capacity]]) -> str:
    """A table with a line for each matrix, or several of them."""
    ridges = list(rows[0][1].missing)
    head = ["matrices", "keys", "dimensions", "rank", "effective rank", "crosstalk"]
    head += [f"missing at ridge {ridge:g}" for ridge in ridges]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, found in rows:
        shares = " | ".join(f"{found.missing[ridge]:.3f}" for ridge in ridges)
        lines.append(
            f"| {name} | {found.keys:,} | {found.dimensions:,} | {found.rank:,} | {found.effective:.1f} | "
            f"{found.crosstalk:.1f} | {shares} |"
        )
    return "\n".join(lines)


def table(layers: Sequence[int], keys: Sequence[Tensor]) -> list[tuple[str, Capacity]]:
    """Each layer alone, then the first ones together, one more at a time."""
    alone = [(f"layer {layer}", capacity([each])) for layer, each in zip(layers, keys, strict=True)]
    several = range(2, len(keys) + 1)
    return alone + [(f"{count} from layer {layers[0]}", capacity(keys[:count])) for count in several]


def main() -> None:
    """Print the table, and keep its numbers if a file is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, required=True, help="CounterFact records")
    parser.add_argument("--edits", type=int, default=2000)
    parser.add_argument("--layers", type=int, nargs="+", help="blocks; those of the default model's file if left out")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    given = parser.parse_args()
    rows = table(*real_keys(given.path, given.edits, given.layers))
    sys.stdout.write(markdown(rows) + "\n")
    if given.json is not None:
        given.json.write_text(json.dumps({name: found._asdict() for name, found in rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
