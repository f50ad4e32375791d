"""Weights of a run after any of its batches, from the unedited ones and the edit log."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from sphere_callbacks.functional import principal_directions, project_out, restrain_spectrum, spectral_norm
from sphere_pl.errors import UserError
from sphere_pl.history.log import EditHistory, unpack
from sphere_pl.history.low_rank import Change, expand, shape_of


@torch.no_grad()
def rebuild(base: Mapping[str, Tensor], history: EditHistory, last: int) -> dict[str, Tensor]:
    """Add up what the batches changed.

    Each change was kept up to the rounding of the weights it was taken from, so the result equals the run's own weights
    up to a few units in the last place of float32.

    Args:
        base: The unedited matrices, float32 `[d_out, d_in]`, by name.
        history: The run's log.
        last: Number of the last entry to add; 0 for none.

    Returns:
        The matrices with which the run went on after that entry, float32 `[d_out, d_in]`.

    Raises:
        UserError: If a file of the log is missing or damaged.
    """
    weights = {name: weight.clone() for name, weight in base.items()}
    for entry in history.chain(last):
        tensors = history.tensors(entry)
        for name, weight in weights.items():
            change = unpack(tensors, name)
            if change is not None:
                weight.add_(expand(_fitting(change, weight, name, entry.number)))
    return weights


def _fitting(change: Change, weight: Tensor, name: str, number: int) -> Change:
    if shape_of(change) != tuple(weight.shape):
        raise UserError(
            f"Batch {number} of the edit log changes {name} by a matrix of shape {list(shape_of(change))}, expected "
            f"{list(weight.shape)}: the log belongs to another model. Restore the run's own edits/ from a copy."
        )
    return change


@torch.no_grad()
def restrained(
    base: Mapping[str, Tensor], weights: Mapping[str, Tensor], restraint: Mapping[str, Any] | None
) -> dict[str, Tensor]:
    """The weights as they are scored and saved: under PRUNE the accumulated change is restrained.

    Args:
        base: The unedited matrices, float32 `[d_out, d_in]`, by name.
        weights: The matrices with which the run continues.
        restraint: The log's note of a `SpectrumRestraint`; None if the run had none.
    """
    if restraint is None:
        return dict(weights)
    chosen = restraint["modules"] or "*"
    return {
        name: _restrain(base[name], weight, restraint) if fnmatchcase(name, chosen) else weight
        for name, weight in weights.items()
    }


def _restrain(base: Tensor, weight: Tensor, restraint: Mapping[str, Any]) -> Tensor:
    accumulated = weight - base
    change = restrain_spectrum(accumulated, float(spectral_norm(base)))
    if restraint["strength"]:
        change = project_out(change, principal_directions(base, restraint["cumulative_ratio"]), restraint["strength"])
    return weight if change is accumulated else base + change
