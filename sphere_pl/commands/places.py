"""Where a user gave a setting: as an argument, or in a YAML file that an argument names."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sphere_pl.storage.files import expanded


class Place(NamedTuple):
    """Where a setting was given.

    Attributes:
        key: Its whole name, with dots.
        value: What it was set to, if that is known.
        file: The file that sets it; None for an argument.
    """

    key: str
    value: str | None = None
    file: Path | None = None

    def shown(self) -> str:
        """As the user wrote it."""
        if self.file is not None:
            return f"{self.file}: `{self.key}`"
        return f"`--{self.key}`"

    def assigned(self, value: str) -> str:
        """As the user wrote it, with its value."""
        if self.file is not None:
            return f"{self.file}: `{self.key}: {value}`"
        return f"`--{self.key} {shlex.quote(value)}`"


def place_of(key: str, args: Sequence[str]) -> Place:
    """Where a key was given: its name may lack the parts in front, as jsonargparse says it of a class's arguments."""
    for arg, following in zip(args, [*args[1:], None], strict=True):
        name, equals, value = arg.partition("=")
        name = name.removeprefix("--").removesuffix("+")
        if arg.startswith("--") and (name == key or name.endswith(f".{key}")):
            return Place(name, value if equals else following)
    for file in yaml_files(args):
        for name, value in _settings(file):
            if name == key or name.endswith(f".{key}"):
                return Place(name, str(value), file)
    return Place(key)


def yaml_files(args: Sequence[str]) -> Iterator[Path]:
    """The YAML files among the values of arguments, the last first: it has the last word."""
    for arg in reversed(args):
        path = expanded(arg.partition("=")[2] if arg.startswith("--") else arg)
        if path.suffix in {".yaml", ".yml", ".json"} and path.is_file():
            yield path


def _settings(file: Path) -> Iterator[tuple[str, Any]]:
    """Names with dots and values of all settings in a file; nothing if it cannot be read."""
    try:
        yield from _flat(yaml.safe_load(file.read_text(encoding="utf-8")), ())
    except (OSError, ValueError, yaml.YAMLError):
        return


def _flat(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if path:
        yield ".".join(path), tree
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flat(value, (*path, str(key)))
    elif isinstance(tree, list):
        for value in tree:
            yield from _flat(value, path)
