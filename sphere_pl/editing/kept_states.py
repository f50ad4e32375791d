"""What methods find out from second moments before the first batch, kept on disk from run to run.

A null space takes longer to find than to read. Files are addressed by all that their numbers come from: the method, its
arguments and its code, the second moment, the weight and the kind of device.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sphere_pl import methods
from sphere_pl.errors import UserError
from sphere_pl.methods.base import Method, State
from sphere_pl.model.embedded import cache_folder
from sphere_pl.storage.addresses import address_of, digest_of_sources
from sphere_pl.storage.checkpoint_file import tensor_digest
from sphere_pl.storage.files import write_atomically

log = logging.getLogger(__name__)


def kept_state(
    method: Method, weight: Tensor, moment: Tensor | None, cache_dir: str | None, find: Callable[[], State]
) -> State:
    """A method's state before the first batch, from disk where the same was found before.

    Only methods of this package that need a second moment are kept, if their arguments can be compared: what another
    package's code rests on is not known.
    A folder that cannot be read or written is said and changes nothing.

    Args:
        method: The method.
        weight: The unedited matrix, `[d_out, d_in]`.
        moment: `E[k kᵀ]`, `[d_in, d_in]`, where the weight is; None for a method that needs none.
        cache_dir: Where to keep states; the user's cache folder if None.
        find: Finds it, as `method.initial_state` does.
    """
    arguments = arguments_of(method)
    if moment is None or arguments is None or not type(method).__module__.startswith(f"{methods.__name__}."):
        return find()
    about = {
        "method": f"{type(method).__module__}.{type(method).__qualname__}",
        "arguments": arguments,
        "code": digest_of_sources(Path(methods.__path__[0])),
        "moment": tensor_digest(moment.cpu()),
        "weight": tensor_digest(weight.detach().cpu()),
        "device": weight.device.type,
        "torch": torch.__version__,
    }
    path = cache_folder(cache_dir) / "states" / f"{address_of(about)}.safetensors"
    found = _read(path, weight.device)
    if found is None:
        found = {name: _laid_out_alike(each) for name, each in find().items()}
        _keep(found, path)
    return found


def arguments_of(method: Method) -> dict[str, Any] | None:
    """What tells a method from another of its class; None if that holds something that cannot be compared.

    Example:
        >>> from sphere_pl.methods import MEMIT
        >>> arguments_of(MEMIT(relative_weight=2.0))["relative_weight"]
        2.0
    """
    plain = {name: sorted(value) if isinstance(value, frozenset) else value for name, value in vars(method).items()}
    return plain if all(isinstance(value, str | int | float | list | None) for value in plain.values()) else None


def _read(path: Path, device: torch.device) -> State | None:
    """What a file holds; None if there is none, or if it is damaged, which is said."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            sums = json.loads((file.metadata() or {})["sha256"])
        if sums != {name: tensor_digest(tensor) for name, tensor in state.items()}:
            raise OSError("its numbers do not have the checksum that was written")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        log.warning("What was kept in %s cannot be used (%s); it is found again.", path, error)
        return None
    return {name: tensor.clone().to(device) for name, tensor in state.items()}  # a file's are aligned otherwise


def _laid_out_alike(tensor: Tensor) -> Tensor:
    """The tensor as it would be in memory if it had been read: products round by order and alignment."""
    alone = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if alone else tensor.clone(memory_format=torch.contiguous_format)


def _keep(state: State, path: Path) -> None:
    on_cpu = {name: tensor.cpu() for name, tensor in state.items()}
    sums = json.dumps({name: tensor_digest(tensor) for name, tensor in on_cpu.items()})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: save_file(on_cpu, temporary, metadata={"sha256": sums}))
    except (OSError, UserError) as error:
        log.warning("What the edits keep could not be kept in %s (%s): it is found again next time.", path, error)
