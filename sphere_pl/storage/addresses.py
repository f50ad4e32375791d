"""Names for what is kept on disk: by all that it rests on, so that a change of any of it finds another file."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def address_of(rests_on: Mapping[str, Any]) -> str:
    """A file name, the same for the same values in any order.

    Example:
        >>> address_of({"a": 1, "b": 2}) == address_of({"b": 2, "a": 1}) != address_of({"a": 1, "b": 3})
        True
    """
    return hashlib.sha256(json.dumps(rests_on, sort_keys=True, default=str).encode()).hexdigest()[:32]


def digest_of_sources(folder: Path) -> str:
    """A hash of the Python files in a folder and those below: another version of a program may find something else."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
