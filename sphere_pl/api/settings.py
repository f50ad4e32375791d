"""Arguments of `sphere_pl.edit` as those of the command line: one parser, one set of defaults."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sphere_pl.commands.configs import group_files
from sphere_pl.errors import UserError
from sphere_pl.methods import Method

FACTS_FILE = "facts.jsonl"
# Settings that `edit` decides, and what to do instead.
_DECIDED = {
    "run_dir": "give `run_dir=`",
    "quiet": "give `quiet=`",
    "config": "give `config=`",
    "model.name": "give the name as `model`",
    "data.name": "give the facts as `facts`",
    "data.path": "give the facts as `facts`",
    "data.file": "give the facts as `facts`",
    "data.split": "give the facts as `facts`",
    "from": "continue a call with edit(report, more_facts)",
    "ckpt_path": "resume a run with `python -m sphere_pl fit`",
    "wandb": "runs with wandb are those of `python -m sphere_pl fit`",
    "trainer.logger": "runs with loggers are those of `python -m sphere_pl fit`",
    "trainer.devices": "`edit` uses one process and one device",
    "trainer.num_nodes": "`edit` uses one process and one device",
    "trainer.strategy": "`edit` uses one process and one device",
}
_DICTIONARIES = {"model.architecture", "model.device_map", "data.columns"}  # settings that are one, and no groups


class Asked(NamedTuple):
    """Arguments of `sphere_pl.edit`; see there."""

    method: Method | str | None
    layers: Sequence[int] | None
    batch_size: int | None
    projection: float | bool | None
    config: str | Sequence[str]
    settings: Mapping[str, Any] | None
    run_dir: str | Path | None
    quiet: bool


def command_line(asked: Asked, decided: Mapping[str, Any]) -> list[str]:
    """The arguments of `fit`.

    Args:
        asked: What the caller asks for.
        decided: Settings that follow from the model, by their dotted names.

    Raises:
        UserError: If a setting is given twice, or is one that `edit` decides.
    """
    groups = [asked.config] if isinstance(asked.config, str) else list(asked.config)
    own: dict[str, Any] = {
        **decided,
        "quiet": asked.quiet or None,
        "run_dir": asked.run_dir,
        "data.name": "jsonl",
        "data.path": Path(asked.run_dir or ".") / FACTS_FILE,
        "data.batch_size": asked.batch_size,
        "model.layers": None if asked.layers is None else list(asked.layers),
    }
    if isinstance(asked.method, str):
        group = _method_group(asked.method)
        groups += [group] if group else []
        own["model.method"] = None if group else asked.method
    if asked.projection is True:
        groups.append("callbacks/sphere")
    elif asked.projection is not None:
        own["projection.strength"] = float(asked.projection)
    own = {name: value for name, value in own.items() if value is not None}
    given = _checked(asked.settings or {}, own)
    return ["fit", *(f"--config={name}" for name in groups), *(_argument(*each) for each in (given | own).items())]


def method_object(method: object, run_dir: str | Path | None) -> Method | None:
    """The method, if it is given as an object; None if it is named or left to the configuration.

    Raises:
        UserError: If it is neither, or a run's files would have to name it.
    """
    if method is None or isinstance(method, str):
        return None
    if not isinstance(method, Method):
        raise UserError(
            f"`method={method!r}` is no editing method. Give a name such as 'memit', or an object of a subclass of "
            "`sphere_pl.Method`."
        )
    if run_dir is not None:
        raise UserError(
            f"`run_dir={str(run_dir)!r}` keeps a run's configuration, which can hold a method's name but no object. "
            "Give `method` as a name, its arguments as `settings={'model.method.init_args.ridge': 1.0}`."
        )
    return method


def _method_group(method: str) -> str | None:
    """The group that a name stands for; None for the import path of a class."""
    name = method.lower().removeprefix("method/").removesuffix(".yaml")
    return f"method/{name}" if f"method/{name}" in group_files() or "." not in method else None


def _checked(settings: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, none of which says again what an argument has said."""
    if not isinstance(settings, Mapping) or not all(isinstance(name, str) for name in settings):
        raise UserError(
            f"`settings` is {type(settings).__name__}, expected a dictionary of dotted names such as "
            "{'model.targets.steps': 10}."
        )
    for name in settings:
        decided = next((each for each in _DECIDED if name == each or name.startswith(f"{each}.")), None)
        if decided:
            raise UserError(f"`settings` may not hold {name!r}: {_DECIDED[decided]}.")
        if name in own:
            raise UserError(f"{name!r} is given twice: in `settings` and by another argument. Leave one of them out.")
        whole = name in _DICTIONARIES or not isinstance(settings[name], Mapping)
        if not whole and "class_path" not in settings[name]:
            inner = f"{name}.{next(iter(settings[name]), 'steps')}"
            raise UserError(
                f"`settings[{name!r}]` is a dictionary, which would replace a whole group. Give each value by its own "
                f"name, such as {inner!r}."
            )
    return dict(settings)


def own_architecture(settings: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The description of a model's family among settings, in one piece or entry by entry; None if there is none.

    Example:
        >>> own_architecture({"model.architecture.block": "h.{}", "model.targets.steps": 3})
        {'block': 'h.{}'}
    """
    given, whole = settings if isinstance(settings, Mapping) else {}, "model.architecture"
    entries = {str(name).removeprefix(f"{whole}."): given[name] for name in given if str(name).startswith(f"{whole}.")}
    return given[whole] if given.get(whole) is not None else entries or None


def _argument(name: str, value: Any) -> str:
    """One argument; text stands for itself, as on the command line."""
    if isinstance(value, str | Path):
        return f"--{name}={value}"
    try:
        return f"--{name}={json.dumps(value)}"
    except TypeError as error:
        raise UserError(
            f"`settings[{name!r}]` is {type(value).__name__}, expected a number, text, list or dictionary."
        ) from error
