"""Checkpoints as safetensors files with a checksum inside: nothing in them can run, and damage is noticed.

A checkpoint is a tree of dictionaries, lists, tuples, plain values and tensors. Its tensors become the tensors of the
file; the tree itself is JSON in the file's metadata, beside a SHA-256 of every tensor and of the tree.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sphere_pl.errors import UserError
from sphere_pl.storage.files import write_atomically

_KEY = "sphere_pl.checkpoint"
_PLAIN = (str, int, float, bool, type(None))


class DamagedCheckpointError(UserError):
    """The file is no checkpoint of an editing run, or not the one that was written."""


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint atomically and make sure that it is on the disk.

    Args:
        checkpoint: Dictionaries, lists, tuples, strings, numbers, None and tensors, nested at will.
        path: The file.

    Raises:
        UserError: If it cannot be written.
        TypeError: If something else is in it, naming where.
    """
    packed = _Packed({}, {})
    tree = json.dumps(_pack(checkpoint, packed, "checkpoint"))
    sums = {name: tensor_digest(tensor) for name, tensor in packed.tensors.items()}
    # One entry: safetensors writes several in an order that changes from process to process.
    about = {"tree": tree, "sha256": sums, "tree_sha256": hashlib.sha256(tree.encode()).hexdigest()}
    metadata = {_KEY: json.dumps(about)}
    write_atomically(path, lambda temporary: save_file(packed.tensors, temporary, metadata=metadata), durable=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint back, its tensors on the CPU.

    Raises:
        DamagedCheckpointError: If the file is not a checkpoint or its checksums do not hold.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[_KEY])
            tree, sums = about["tree"], about["sha256"]
            if hashlib.sha256(tree.encode()).hexdigest() != about["tree_sha256"]:
                raise DamagedCheckpointError(_damaged(path, "its contents do not have the checksum that was written"))
            # Copied, so that each begins where PyTorch would have put it: rounding can depend on that as well.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
        for name, tensor in tensors.items():
            if tensor_digest(tensor) != sums[name]:
                raise DamagedCheckpointError(_damaged(path, "a tensor does not have the checksum that was written"))
        checkpoint = _unpack(json.loads(tree), tensors)
        if not isinstance(checkpoint, dict):
            raise DamagedCheckpointError(_damaged(path, "it holds something else"))
        return checkpoint
    except UserError:
        raise
    except OSError as error:
        raise DamagedCheckpointError(_damaged(path, error.strerror or str(error))) from error
    except (SafetensorError, KeyError, ValueError, TypeError, IndexError, AttributeError, RecursionError) as error:
        reason = "it is no safetensors file with a checkpoint's metadata" if isinstance(error, KeyError) else str(error)
        raise DamagedCheckpointError(_damaged(path, reason)) from error


def _damaged(path: Path, reason: str) -> str:
    return (
        f"{path} is not a checkpoint of an editing run, or it is damaged: {reason}. Give a file of a run's folder "
        "checkpoints/, or --run_dir=<folder> --ckpt_path=last for the newest one that is whole."
    )


class _Packed(NamedTuple):
    """Tensors by name, and the name of each by where its numbers lie."""

    tensors: dict[str, Tensor]
    names: dict[tuple[Any, ...], str]


def _pack(value: Any, packed: _Packed, where: str) -> Any:
    """Turn a value into JSON; tensors go to `packed`."""
    if isinstance(value, Tensor):
        # Numbers are kept in the order in which they lie in memory: a product with a matrix that lies column by column
        # is rounded in another way than one with the same matrix row by row.
        order = sorted(range(value.ndim), key=value.stride, reverse=True)
        return {"tensor": [_put(value.detach().permute(order), packed), order]}
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, dict):
        for key in value:
            if type(key) not in _PLAIN:
                raise TypeError(f"{where} has a key {key!r} that is no plain value, so it cannot be saved.")
        return {"dict": [[key, _pack(each, packed, f"{where}[{key!r}]")] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(each, packed, f"{where}[{place}]") for place, each in enumerate(value)]}
    raise TypeError(
        f"{where} is a {type(value).__name__}, which a checkpoint cannot hold: only tensors, numbers, text, lists and "
        "dictionaries of them load without running code."
    )


def _put(tensor: Tensor, packed: _Packed) -> str:
    """Keep a tensor once, however often it is named."""
    place = (tensor.data_ptr(), tensor.device, tensor.dtype, tuple(tensor.shape), tensor.stride())
    name = packed.names.get(place) if tensor.numel() else None
    if name is None:
        name = packed.names[place] = f"t{len(packed.tensors)}"
        held = tensor.cpu().contiguous()
        storages = {other.untyped_storage().data_ptr() for other in packed.tensors.values()}
        # safetensors refuses tensors that share memory in part.
        shared = held.untyped_storage().data_ptr() in storages or held.untyped_storage().nbytes() > held.nbytes
        packed.tensors[name] = held.clone() if shared else held
    return name


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        name, order = content
        return tensors[name].permute([order.index(dim) for dim in range(len(order))])
    if kind == "dict":
        return {key: _unpack(each, tensors) for key, each in content}
    if kind in {"list", "tuple"}:
        each = [_unpack(item, tensors) for item in content]
        return each if kind == "list" else tuple(each)
    raise ValueError(f"unknown kind {kind!r}")


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of type, shape and numbers."""
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    if tensor.numel():
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
