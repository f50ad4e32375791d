"""What AlphaEdit's null space leaves of SPHERE's principal directions: `python -m study.geometry`.

No edit is made. SPHERE can only remove what an update puts into the principal directions U of a weight, and an update
of AlphaEdit lies within the null space Q of the keys that ordinary text makes. Written to geometry.json, for each layer
of the default model: how much of U lies in Q, and how much of an ordinary key's squared length lies in U before and
after the projection into Q, each against chance.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sphere_callbacks.functional import principal_directions
from sphere_pl.editing.kept_moments import second_moments
from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.methods.functional import null_space_basis
from sphere_pl.model.loading import load_language_model
from sphere_pl.storage.files import write_text

RESULTS = Path(__file__).with_name("geometry.json")


class Overlap(NamedTuple):
    """How a weight's principal directions lie to the null space of its keys.

    Attributes:
        rank: Number of principal directions, r.
        principal_chance: Share of a random vector that lies in them, r / d_in.
        null_chance: Share of a random vector that lies in the null space, its dimension / d_in.
        principal_in_null: Share of the principal directions that lies in the null space.
        keys_in_principal: Share of the keys' squared length that lies in the principal directions.
        null_keys_in_principal: The same of the keys projected into the null space.
    """

    rank: int
    principal_chance: float
    null_chance: float
    principal_in_null: float
    keys_in_principal: float
    null_keys_in_principal: float


def overlap(weight: Tensor, moment: Tensor, threshold: float, ratio: float) -> Overlap:
    """Measure one weight.

    Args:
        weight: Shape `[d_out, d_in]`.
        moment: `E[k kᵀ]`, shape `[d_in, d_in]`.
        threshold: Eigenvalues below it span the null space.
        ratio: SPHERE's η.
    """
    directions = principal_directions(weight.double(), ratio)  # [d_in, r]
    moment = moment.double()
    null = null_space_basis(moment, threshold)  # [d_in, m]
    inside = null.T @ directions  # [m, r]
    reduced = null.T @ moment @ null  # [m, m]
    d_in, rank = directions.shape
    return Overlap(
        rank,
        rank / d_in,
        null.shape[1] / d_in,
        float(inside.square().sum() / rank),
        float((directions.T @ moment @ directions).trace() / moment.trace()),
        float((inside.T @ reduced @ inside).trace() / reduced.trace()),
    )


def measure(layers: list[int], threshold: float, ratio: float) -> list[dict[str, Any]]:
    """Measure some layers of the embedded model."""

    def silent(items: Iterable[Any], _: str, __: int) -> Iterable[Any]:
        return items

    lm = load_language_model(dtype="bfloat16")
    sites = lm.sites(layers)
    moments = second_moments(lm, sites, StatisticsSettings(), silent)
    return [
        {"layer": site.layer, **overlap(site.read(), moments[site.name].matrix, threshold, ratio)._asdict()}
        for site in sites
    ]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 5, 6, 7, 8])
    parser.add_argument("--threshold", type=float, default=0.02, help="of AlphaEdit's null space")
    parser.add_argument("--ratio", type=float, default=0.5, help="SPHERE's η")
    args = parser.parse_args()
    torch.manual_seed(0)
    found = {"threshold": args.threshold, "ratio": args.ratio}
    rows = measure(args.layers, args.threshold, args.ratio)
    write_text(RESULTS, json.dumps({**found, "layers": rows}, indent=1) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
