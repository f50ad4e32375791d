"""The edits alone, as a small file that is added to the unedited model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sphere_pl.errors import UserError
from sphere_pl.history.entries import Header
from sphere_pl.history.log import pack, unpack
from sphere_pl.history.low_rank import ROUNDING, compress, expand, shape_of
from sphere_pl.storage.files import write_atomically

_KIND = "sphere_pl_delta"
_SAMPLED = 64
_SAME = 2e-2  # of the sample's norm: twice bfloat16's rounding and more; another model's weights are off by about 1


def save_delta(
    path: Path, header: Header, base: Mapping[str, Tensor], weights: Mapping[str, Tensor], about: Mapping[str, Any]
) -> None:
    """Write the change of each matrix, float32, as factors where they are smaller than the full matrix.

    Args:
        path: The file.
        header: The run's model and matrices.
        base: Unedited matrices, float32 `[d_out, d_in]`, by name.
        weights: Edited matrices, the same.
        about: What to note beside: method, edits and so on.
    """
    changes = {}
    for matrix in header.matrices:
        before, after = base[matrix.name], weights[matrix.name]
        noise = ROUNDING * float(torch.linalg.matrix_norm(after))
        changes[matrix.name] = compress(after - before, 16, noise)
    # One entry: safetensors writes several in an order that changes from process to process.
    metadata = {_KIND: json.dumps({**about, "format": 1, "matrices": layout_of(header, base)}, sort_keys=True)}
    write_atomically(path, lambda temporary: save_file(pack(changes), temporary, metadata=metadata))


def layout_of(header: Header, base: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the matrices of a model are recognised by: shape, and a few entries."""
    return {
        matrix.name: {
            "shape": list(matrix.shape),
            "transposed": matrix.transposed,
            "sample": _sample(base[matrix.name]).tolist(),
        }
        for matrix in header.matrices
    }


def read_layout(about: Any) -> dict[str, Any]:
    """What `layout_of` has written, from the metadata of a file.

    Raises:
        ValueError: If it is something else.
    """
    if not isinstance(about, dict) or about.get("format") != 1:
        raise ValueError("it was not written by `python -m sphere_pl export`")
    return {name: _layout(matrix) for name, matrix in about["matrices"].items()}


@torch.no_grad()
def apply_delta(model: nn.Module, path: str | Path) -> nn.Module:
    """Add the edits of a delta file to the unedited model, in place.

    Args:
        model: The base model, for example from `AutoModelForCausalLM.from_pretrained`, in any floating-point type.
        path: A file written by `python -m sphere_pl export --delta_only`.

    Returns:
        The model itself. The sum is computed in float32 and rounded to the model's type.

    Raises:
        UserError: If the file is no delta, or the model is not the one it belongs to; the model is unchanged then.
    """
    layout, tensors = _read(Path(path))
    parameters = dict(model.named_parameters())
    for name, about in layout.items():
        check_matrix(parameters, name, about, Path(path))
        change = unpack(tensors, name)
        if change is not None and shape_of(change) != tuple(about["shape"]):
            raise UserError(
                f"{path} is damaged: its change of {name} has not the shape that its metadata says. Export it again."
            )
    for name, about in layout.items():
        change = unpack(tensors, name)
        if change is not None:
            stored = parameters[name]
            added = expand(change).to(stored.device)
            stored.copy_(stored.float() + (added.T if about["transposed"] else added))
    return model


def _sample(weight: Tensor) -> Tensor:
    """A few entries by which a matrix is recognised."""
    flat = weight.flatten()
    return flat[:: max(1, flat.numel() // _SAMPLED)][:_SAMPLED].float().cpu()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        return read_with_layout(path, _KIND)
    except ValueError as error:
        raise UserError(
            f"{path} is no delta that can be applied: {error}. Give one that `python -m sphere_pl export --delta_only` "
            "wrote."
        ) from error


def read_with_layout(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read tensors by name, and the layout of the matrices that they belong to.

    Args:
        path: A safetensors file.
        kind: The entry of its metadata that holds what `layout_of` has written.

    Raises:
        ValueError: If it cannot be read, or has no such entry.
    """
    try:
        with safe_open(path, framework="pt") as file:
            layout = read_layout(json.loads((file.metadata() or {}).get(kind, "null")))
            return layout, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except (OSError, TypeError, LookupError, AttributeError, SafetensorError) as error:
        raise ValueError(str(error)) from error


def _layout(matrix: Mapping[str, Any]) -> dict[str, Any]:
    rows, columns = matrix["shape"]
    sample = [float(value) for value in matrix["sample"]]
    return {"shape": [int(rows), int(columns)], "transposed": bool(matrix["transposed"]), "sample": sample}


def check_matrix(parameters: Mapping[str, Tensor], name: str, about: Mapping[str, Any], path: Path) -> None:
    """Refuse a model whose matrix is not the one that a file was made for.

    Raises:
        UserError: If it has none of that name, or other values.
    """
    if name not in parameters:
        raise UserError(f"{path} changes {name}, which the model does not have. Give the base model it was made for.")
    stored = parameters[name].detach()
    weight = stored.T if about["transposed"] else stored
    sample = torch.tensor(about["sample"])
    same = list(weight.shape) == about["shape"] and _sample(weight).shape == sample.shape
    if not same or not float((_sample(weight) - sample).norm()) <= _SAME * float(sample.norm()):
        raise UserError(
            f"{path} was made for another model: {name} has other values or another shape here. Give the unedited "
            "base model that the file's metadata names."
        )
