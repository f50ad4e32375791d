"""Is this still the run that the checkpoint was written by? Requests and settings, compared."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sphere_pl.data.request import EditRequest, Form, shorten
from sphere_pl.errors import UserError
from sphere_pl.text.numbers import counted

# Settings that change no edit: where and how a run is carried out and shown.
_FREE = (
    "run_dir", "ckpt_path", "weights_only", "config", "wandb", "quiet", "checkpoints", "edit_log",
    "edit_log_gigabytes", "abilities.keep",
    "model.cache_dir", "model.statistics.cache_dir", "model.device_map", "model.evaluation.keep_unedited",
    "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.logger",
    "trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.enable_checkpointing",
    "trainer.profiler", "trainer.default_root_dir", "trainer.plugins",
)  # fmt: skip


_FIRST_FIELDS = 15  # of a request, which every hash holds


def request_hashes(requests: Sequence[EditRequest]) -> Tensor:
    """A 64-bit hash of each request, int64 `[n]`; where it was read from does not count."""
    return torch.tensor([_hash(request._replace(source="")) for request in requests], dtype=torch.int64)


def _hash(request: EditRequest) -> int:
    values = list(request._replace(form=Form()))
    defaults = list(EditRequest._field_defaults.values())
    # Fields that came later are left out where they say nothing: a checkpoint may be older than they are.
    while len(values) > _FIRST_FIELDS and values[-1] == defaults[len(values) - 1 - len(EditRequest._fields)]:
        values.pop()
    digest = hashlib.sha256(json.dumps(values).encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def check_model(saved: str, now: str, name: str) -> None:
    """Refuse to resume on another model.

    Args:
        saved: Fingerprint of the unedited model that the checkpoint was written for.
        now: Fingerprint of the model at hand.
        name: Its name.

    Raises:
        UserError: If they differ.
    """
    if saved != now:
        raise UserError(
            f"The checkpoint was written for another model, or another version of it, than {name!r} is now: the "
            "unedited weights differ. Give --model.name and --model.dtype of the run that wrote it."
        )


def check_requests(saved: Tensor, requests: Sequence[EditRequest]) -> None:
    """Refuse to resume with other data.

    Args:
        saved: Hashes of the requests that the checkpoint was written for, int64 `[requests]`.
        requests: Those of the run that would be resumed.

    Raises:
        UserError: Naming the first request that differs.
    """
    remedy = "A run resumes with the data it began with: undo the change, or start a new run in another folder."
    if len(saved) != len(requests):
        raise UserError(
            f"The checkpoint belongs to a run of {counted(len(saved), 'edit')}, but the data now give "
            f"{len(requests)}. {remedy}"
        )
    different = (saved != request_hashes(requests)).nonzero().flatten().tolist()
    if different:
        first, of = requests[different[0]], f"of the {counted(len(requests), 'edit')}"
        raise UserError(
            f"{counted(len(different), f'{of} is not the one', f'{of} are not those')} that the checkpoint was written "
            f"for; the first is edit {different[0] + 1}, now {shorten(first.question)} -> {shorten(first.target_new)} "
            f"({first.source or 'case ' + first.case_id}). {remedy}"
        )


def settings_that_count(config: Mapping[str, Any]) -> dict[str, str]:
    """A run's settings as dotted names and JSON values, without those that change no edit.

    Example:
        >>> settings_that_count({"data": {"limit": 3}, "run_dir": "here"})
        {'data.limit': '3'}
    """
    flat = _flatten(config, "")
    return {name: value for name, value in flat.items() if not any(_inside(name, free) for free in _FREE)}


def _flatten(value: Any, name: str) -> dict[str, str]:
    if not isinstance(value, Mapping) or not value:
        return {name: json.dumps(value, sort_keys=True, default=str)}
    parts: dict[str, str] = {}
    for key, each in value.items():
        parts |= _flatten(each, f"{name}.{key}" if name else str(key))
    return parts


def _inside(name: str, group: str) -> bool:
    return name == group or name.startswith(f"{group}.")


def check_settings(then: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse to resume with other settings.

    Raises:
        UserError: Naming every setting that differs.
    """
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if names:
        changes = ", ".join(f"{n}: {then.get(n, 'not set')} then, {now.get(n, 'not set')} now" for n in names[:8])
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise UserError(
            f"The checkpoint was written by a run with other settings ({changes}{more}). Leave them out: with "
            "--run_dir=<its folder> --ckpt_path=last a run takes its own settings from its config.yaml."
        )
