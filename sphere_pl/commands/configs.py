"""Configuration files by name: `--config method/memit` finds conf/method/memit.yaml wherever the package lies.

Files are read in the order given and later ones win, as everywhere, but for two things that nobody has to remember:

- Of the groups `model`, `method` and `callbacks`, a model's file is read before a method's and a method's before those
  of callbacks; `recommended` comes after a model's. ROME's layer wins over those that a model has for other methods,
  and SPHERE over a method without it.
- A constant that depends on two of them has a file named after both. `method/ft/llama3_8b` is read right after
  `method/ft` where `model/llama3_8b` is given too, `callbacks/sphere/alphaedit` after `callbacks/sphere` with
  `method/alphaedit`.

A model that has a file of its own keeps its settings without being asked: the file whose `model.name` is the run's
model, or the default one if the run names none, is read before all others.
"""

from collections.abc import Sequence

import yaml

from sphere_pl.errors import UserError
from sphere_pl.model.embedded import EMBEDDED_MODEL
from sphere_pl.model.known import config_folder, known_models
from sphere_pl.storage.files import expanded
from sphere_pl.text.names import from_yaml
from sphere_pl.text.usage import did_you_mean

_FLAGS = ("--config", "-c")
_ORDER = ("model", "recommended", "method", "callbacks")


def group_files() -> list[str]:
    """Names of all group files, such as `method/memit`, and of those that stand alone, such as `recommended`."""
    folder = config_folder()
    found = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    return [name for name in found if name != "default"]  # which every run reads


def find_config(name: str) -> str:
    """The path of a configuration file: the user's own file first, then a group file of that name.

    Raises:
        UserError: If there is neither.
    """
    if name.startswith("{"):  # the settings themselves
        return name
    if expanded(name).is_file():
        try:
            expanded(name).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"--config={name} is not UTF-8 text ({error}). Write it again as UTF-8.") from error
        return name
    found = config_folder() / f"{name.removesuffix('.yaml')}.yaml"
    if not found.is_file():
        raise UserError(f"--config={name}: no such file and no such group.\n{_instead(name)}")
    return str(found)


def _instead(name: str) -> str:
    """What a name that is none may have meant, or else which names there are."""
    groups = group_files()
    meant = did_you_mean(name.removesuffix(".yaml"), groups)
    if meant:
        return meant
    folder = name.partition("/")[0]
    inside = [group for group in groups if group.startswith(f"{folder}/")]
    if inside:
        return f"There are {', '.join(inside)}."
    alone = [group for group in groups if "/" not in group]
    folders = dict.fromkeys(f"{group.partition('/')[0]}/" for group in groups if group.partition("/")[0] not in alone)
    return (
        f"Groups begin with {', '.join(folders)}; `--config method/` lists those of a method. "
        f"{' and '.join(alone)} stands alone."
    )


def resolve_group_files(args: Sequence[str]) -> list[str]:
    """Replace the names after `--config` by paths, in the order in which the files are read.

    Example:
        >>> resolve_group_files(["fit", "--config", "method/memit"])[1].endswith("memit.yaml")
        True

    Raises:
        UserError: If a name is neither a file nor a group.
    """
    words: list[str | None] = []  # None where a configuration file stands
    names: list[str] = []
    rest = iter(args)
    for word in rest:
        flag, equals, value = word.partition("=")
        name = (value if equals else next(rest, None)) if flag in _FLAGS else None
        if name is not None and not equals and name.startswith("-"):
            raise UserError(f"--config needs a name, found {name}: a YAML file, or a group such as method/memit.")
        words.append(word if name is None else None)
        names += [] if name is None else [name]
    known = _known_model(args, names) if [*args[:1]] == ["fit"] else None
    if known is not None:
        words.insert(1, None)
        names.insert(0, known)
    files = iter(_with_variants(_in_reading_order(names)))
    return [each for word in words for each in ([word] if word is not None else next(files))]


def _known_model(args: Sequence[str], names: Sequence[str]) -> str | None:
    """The group of the run's model, if it has one and the command names no other."""
    if any(_kind(name) == "model" for name in names):
        return None
    named = [found for name in names if not _group(name) and (found := _named_by(name))]
    for flag, value in zip(args, [*args[1:], ""], strict=True):
        if flag == "--model.name":
            named.append(value)
        elif flag.startswith("--model.name="):
            named.append(flag.partition("=")[2])
    return known_models().get(named[-1] if named else EMBEDDED_MODEL)


def _named_by(file: str) -> str | None:
    """The model that a user's own file names; a file that cannot be read is refused by what parses it."""
    try:
        text = file if file.startswith("{") else expanded(file).read_text(encoding="utf-8")
        model = from_yaml(text).get("model")
        return str(model["name"])
    except (OSError, ValueError, yaml.YAMLError, AttributeError, KeyError, TypeError):
        return None


def _in_reading_order(names: Sequence[str]) -> list[str]:
    """Put models, methods and callbacks in their order, on the places that they have among the other files."""
    ranked = (name for kind in _ORDER for name in names if _kind(name) == kind)
    return [next(ranked) if _kind(name) in _ORDER else name for name in names]


def _with_variants(names: Sequence[str]) -> list[list[str]]:
    """The arguments that each file stands for: its own, and those of its variants for the chosen model and method."""
    last = {_kind(name): _group(name).rpartition("/")[2] for name in names if _group(name).count("/") == 1}
    choices = [last[kind] for kind in ("model", "method") if kind in last]
    known = set(group_files())
    found = []
    for name in names:
        variants = [variant for choice in choices if (variant := f"{_group(name)}/{choice}") in known]
        found.append([f"--config={find_config(each)}" for each in (name, *variants)])
    return found


def _group(name: str) -> str:
    """A group file's name such as `method/memit`; empty for the user's own file."""
    return "" if name.startswith("{") or expanded(name).is_file() else name.removesuffix(".yaml")


def _kind(name: str) -> str:
    return _group(name).partition("/")[0]
