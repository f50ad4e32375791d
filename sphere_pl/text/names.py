"""Names that a user gives, kept as they are: in YAML, on a command line, in a shell."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from sphere_pl.errors import UserError

_REFERENCE = re.compile(r"(\\*)\$\{")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
# Options whose values are names: on the command line `${` in them is no reference to another value.
_NAMING = {
    "--run_dir", "--ckpt_path", "--from", "--model.name", "--model.revision", "--model.cache_dir",
    "--model.statistics.corpus", "--model.statistics.cache_dir", "--data.path", "--data.file",
    "--wandb.project", "--wandb.entity", "--wandb.group", "--wandb.tags", "--wandb.tags+",
    "--abilities.data_dir", "--abilities.keep", "--checkpoints.folder",
}  # fmt: skip
_LONGEST = 100


class _Dumper(yaml.SafeDumper):
    """Quotes all that another reader might take for something else: `1e5`, `on`, `2024-01-01`, `~`."""


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if _PLAIN.fullmatch(text) else '"')


_Dumper.add_representer(str, _represent)


def to_yaml(values: dict[str, Any]) -> str:
    r"""Write a configuration such that every string is read back as that string.

    Example:
        >>> to_yaml({"run_dir": "1e5", "name": "a/b", "tag": "${x}"})
        'run_dir: "1e5"\nname: a/b\ntag: "\\\\${x}"\n'
    """
    return yaml.dump(_escaped(values), Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=float("inf"))


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_escaped(each) for each in value]
    return literal(value) if isinstance(value, str) else value


def from_yaml(text: str) -> Any:
    """Read YAML with libyaml where it is there, which takes a tenth of the time.

    Raises:
        YAMLError: If it is none.

    Example:
        >>> from_yaml("model: {layers: [4, 5]}")
        {'model': {'layers': [4, 5]}}
    """
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 (both are safe)


def load_value(text: str) -> Any:
    """Read YAML; a single line that says nothing, such as `~`, `#1` or `---`, is the name that it looks like.

    The word `null` alone says that an option which may be left out is.
    """
    value = get_loader("yaml")(text)
    return text if value is None and text.strip() and "\n" not in text else value


def literal(text: str) -> str:
    r"""Text for a configuration in which `${` refers to nothing.

    Example:
        >>> literal("a${b}")
        'a\\${b}'
    """
    return _REFERENCE.sub(lambda found: found[1] * 2 + "\\${", text)


def literal_names(args: Sequence[str]) -> list[str]:
    """Arguments of a command line in which names mean what they say; elsewhere `${...}` still refers to a value."""
    kept: list[str] = []
    expected = False
    for arg in args:
        flag, equals, value = arg.partition("=")
        if expected:
            kept.append(literal(arg))
        else:
            kept.append(f"{flag}={literal(value)}" if equals and flag in _NAMING else arg)
        expected = not expected and arg in _NAMING
    return kept


def check_name(option: str, name: str) -> None:
    """Refuse a name that no file can have.

    Raises:
        UserError: If it is empty, or no text.
    """
    if not name:
        raise UserError(f"{option} is empty. Name a folder, or leave the option out.")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{option}={name} is not UTF-8 text ({error.reason}), and config.yaml could not hold it. Choose another "
            "name."
        ) from error
    if "\0" in name:
        raise UserError(f"{option}={name!r} has a NUL in it, which no file's name can hold. Choose another name.")


def option(flag: str, value: str | Path) -> str:
    """An option that a shell reads as that value.

    Example:
        >>> option("--run_dir", "my run"), option("--run_dir", "-x")
        ("--run_dir 'my run'", '--run_dir=-x')
    """
    quoted = shlex.quote(str(value))
    return f"{flag}={quoted}" if str(value).startswith("-") else f"{flag} {quoted}"


def quoted(value: str | Path) -> str:
    """A name that stands alone in a command: a shell reads it as it is, and no program takes it for an option.

    Example:
        >>> quoted("my run"), quoted(Path("-x")), quoted("mine")
        ("'my run'", './-x', 'mine')
    """
    return shlex.quote(f"./{value}" if str(value).startswith("-") else str(value))


def resume_command(run_dir: str | Path, checkpoint: str = "last") -> str:
    """The command that resumes a run; it can be pasted into a shell."""
    return f"python -m sphere_pl fit {option('--run_dir', run_dir)} {option('--ckpt_path', checkpoint)}"


def folder_name(name: str) -> str:
    """A model's name as the end of a folder's name: of moderate length, and one line.

    Example:
        >>> folder_name("models/tiny llama")
        'tiny llama'
    """
    return " ".join(Path(name).name.split())[:_LONGEST].strip()
