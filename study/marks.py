"""What a result says of where it comes from, so that none of another kind is mixed in."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.cells import STOPPED, Cell, dump
from sphere_pl.commands.configs import resolve_group_files
from sphere_pl.errors import UserError
from sphere_pl.history.log import read_log
from sphere_pl.model.known import config_folder
from sphere_pl.model.products import has_units
from sphere_pl.storage.files import write_text
from sphere_pl.text.version import __version__

# Settings that change neither edits nor scores.
FREE = (("model", "evaluation", "keep_unedited"),)


def settings_digest(arguments: Sequence[str]) -> str:
    """A digest of what the configuration files of a cell say together; what a later file replaces does not count.

    Files of this folder are named from the top of the checkout.
    """
    words = resolve_group_files(["fit", *arguments])
    named = [Path(word.removeprefix("--config=")) for word in words if word.startswith("--config=")]
    said: dict[str, Any] = {}
    for file in [config_folder() / "default.yaml", *named]:
        said = merged(said, yaml.safe_load(file.read_text(encoding="utf-8")))
    for *path, last in FREE:
        section = said
        for name in path:
            section = section.get(name, {})
        section.pop(last, None)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def merged(first: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, those of the second over those of the first; lists that are added to (`name+`) grow.

    Example:
        >>> merged({"a": {"b": 1, "c": 2}, "d+": [1]}, {"a": {"b": 3}, "d+": [2]})
        {'a': {'b': 3, 'c': 2}, 'd+': [1, 2]}
    """
    found = dict(first)
    for name, value in then.items():
        known = found.get(name)
        if isinstance(known, dict) and isinstance(value, dict):
            found[name] = merged(known, value)
        elif name.endswith("+") and isinstance(known, list):
            found[name] = [*known, *value]
        else:
            found[name] = value
    return found


def keep_result(results: Path, scratch: Path, cell: Cell, version: int, folder: Path) -> None:
    """Write a cell's result with its marks.

    Args:
        results: The file to write.
        scratch: What the run left, as `benchmarks.cells.run_cell` writes it; it is removed.
        cell: The cell.
        version: Of the specification.
        folder: The run folder.
    """
    found = json.loads(scratch.read_text(encoding="utf-8"))
    name = Path(found.get("model", "")).name  # not where this machine keeps it
    marks = {**_marks(cell, version), "fingerprint": read_log(folder).header.fingerprint, "model": name}
    # Rounding differs between kinds of processors, most of all where bfloat16 is multiplied in float32.
    marks |= {"processor": torch.backends.cpu.get_cpu_capability(), "bfloat16_units": has_units(torch.bfloat16)}
    write_text(results, dump({**found, **marks, "outcomes": _outcomes(folder)}))
    scratch.unlink()


def _marks(cell: Cell, version: int) -> dict[str, Any]:
    return {
        "spec": version,
        "sphere_pl": __version__,
        "arguments": list(cell.arguments),
        "settings": settings_digest(cell.arguments),
    }


def _outcomes(folder: Path) -> dict[str, str]:
    """What became of each fact; nothing of a run that broke off."""
    path = folder / "results.json"
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8")).get("outcomes", {}) if path.exists() else {}
    return found


def check_result(path: Path, cell: Cell, version: int) -> dict[str, Any]:
    """Read a cell's result.

    Raises:
        UserError: If it cannot be read, was cut off, or is of another specification, program, cell or settings.
    """
    wanted = _marks(cell, version)
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kept = {name: found[name] for name in (*wanted, "fingerprint", "outcomes", "failed")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no result of this comparison ({error}). Move it away, and run the cell.") from error
    if kept["failed"] == STOPPED or not (kept["outcomes"] or kept["failed"]):
        raise UserError(f"{path} was cut off. Move it away, and run the cell; it resumes.")
    for name, value in wanted.items():
        if kept[name] != value:
            raise UserError(f"{path} has {name}={kept[name]!r}, expected {value!r}. Move it away, and run the cell.")
    return found
