"""`fit --from RUN_DIR`: a run continues a finished one, with its settings but for what is said otherwise."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sphere_pl.commands.configs import find_config
from sphere_pl.commands.resuming import value_of
from sphere_pl.errors import UserError
from sphere_pl.history.by_hand import newest_run
from sphere_pl.history.saved import SavedRun
from sphere_pl.storage.files import expanded
from sphere_pl.text.names import from_yaml, literal

# What belongs to one run, or to one machine's folders, and is no setting of the next.
_OWN = ("run_dir", "ckpt_path", "overwrite", "from", "weights_only", "config", "abilities.keep", "checkpoints.folder")
# What is said of the facts themselves; other facts need not be found, cut or ordered as those of the earlier run.
_OF_THE_FACTS = ("name", "path", "file", "split", "limit", "offset", "shuffle_seed")
_BUILT_IN = "facts"


def resolve_from(args: Sequence[str]) -> list[str]:
    """Put the settings of the run that `--from` names before all other arguments.

    Raises:
        UserError: If that is no run folder, or nothing says which facts to add.
    """
    named = value_of(args, "from")
    if not args or args[0] != "fit" or named in {None, "null"}:
        return list(args)
    if _resumes(args):
        return list(args)
    folder = from_folder(str(named))
    given = _given_data(args[1:])
    if not given:
        raise UserError(
            f"--from={named}: nothing says which facts to add. Give --data.path <file>, or --data.offset for later "
            "records of the same data."
        )
    inherited = _inherited(SavedRun.open(folder).config, given)
    return [args[0], f"--config={json.dumps(_literal(inherited))}", *args[1:]]


def _resumes(args: Sequence[str]) -> bool:
    """Whether there is a run to resume, whose own configuration counts."""
    checkpoint, run_dir = value_of(args, "ckpt_path"), value_of(args, "run_dir")
    if checkpoint == "last":
        return run_dir is not None and (Path(run_dir) / "config.yaml").is_file()
    return checkpoint not in {None, "null", "None"}


def from_folder(named: str) -> Path:
    """The run folder that `--from` names, itself or as that of an editing session; one may be called `~`.

    Raises:
        UserError: If it is none.
    """
    folder = Path(named) if Path(named).is_dir() else expanded(named)
    if not folder.is_dir():
        raise UserError(f"--from={named} is no folder. Give the run folder of a finished run; was it deleted or moved?")
    return newest_run(folder)


def check_run_dir(run_dir: str, earlier: str) -> None:
    """Refuse to write into the run that is continued.

    Raises:
        UserError: If both are one folder.
    """
    if Path(run_dir).resolve() == from_folder(earlier).resolve():
        raise UserError(
            f"--run_dir={run_dir} is the run that --from continues, which stays as it is. Name another folder, or "
            "leave --run_dir out."
        )


def _given_data(args: Sequence[str]) -> dict[str, Any]:
    """Settings of the data that a command line gives, by their names; from files as well."""
    given: dict[str, Any] = {}
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        flag, equals, value = arg.partition("=")
        text = value if equals else following
        if flag.startswith("--data."):
            given[flag.removeprefix("--data.")] = text
        elif flag in ("--config", "-c"):
            given |= _section(Path(find_config(text)))
    return given


def _section(path: Path) -> dict[str, Any]:
    try:
        config = from_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # the parser says what is wrong with it
        return {}
    data = config.get("data") if isinstance(config, dict) else None
    return data if isinstance(data, dict) else {}


def _inherited(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the earlier run that hold for the next one."""
    kept: dict[str, Any] = json.loads(json.dumps(config, default=str))
    for name in _OWN:
        group, _, key = name.rpartition(".")
        (kept.get(group) or {} if group else kept).pop(key, None)
    data = kept.get("data") or {}
    if {"name", "path"} & set(given):
        format_name = data.get("name")
        for name in _OF_THE_FACTS:
            data.pop(name, None)
        if "path" in given and "name" not in given:
            data["name"] = "jsonl" if format_name in (None, _BUILT_IN) else format_name
    return kept


def _literal(value: Any) -> Any:
    """Names mean what they say: `${` in them refers to nothing."""
    if isinstance(value, dict):
        return {key: _literal(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_literal(each) for each in value]
    return literal(value) if isinstance(value, str) else value
