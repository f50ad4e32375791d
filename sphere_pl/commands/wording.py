"""What a parser's error says, in words for people: from argparse and jsonargparse alike."""

import argparse
import ast
import inspect
import re
import shlex
import types
from collections.abc import Callable, Sequence
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from sphere_pl.commands.places import Place, place_of, yaml_files
from sphere_pl.text.usage import did_you_mean

_LONGEST = 300  # characters of a message that is passed on as it is
_SHOWN = 12  # members of a group that are listed
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "NoneType": "null",
    "str": "text",
    "Path": "a path",
    "list": "a list such as [1, 2]",
    "dict": "a mapping such as {name: value}",
}


Lines = tuple[str, str]  # the error, and what may have been meant
Tell = Callable[[re.Match[str], argparse.ArgumentParser, Sequence[str]], Lines]


def explain(message: str, parser: argparse.ArgumentParser, args: Sequence[str]) -> Lines:
    """Say what a parser found wrong in one line, and what may have been meant in another.

    Args:
        message: The parser's own message.
        parser: The parser, of the command that was given.
        args: What was parsed.
    """
    for pattern, tell in _RULES:
        found = pattern.search(message)
        if found is not None:
            error, hint = tell(found, parser, args)
            return _one_line(error), _one_line(hint)
    return _one_line(message)[:_LONGEST], ""


def options(parser: argparse.ArgumentParser) -> list[str]:
    """The long names of all options, without those that jsonargparse adds to lists and classes."""
    own = [
        name
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        for name in action.option_strings
        if name.startswith("--") and not name.endswith(("+", ".help"))
    ]
    return [*own, *getattr(parser, "also", ())]


def _unrecognized(found: re.Match[str], parser: argparse.ArgumentParser, args: Sequence[str]) -> Lines:
    given = shlex.split(found[1]) if found[1].count("'") % 2 == 0 and found[1].count('"') % 2 == 0 else found[1].split()
    flag = next((arg for arg in given if arg.startswith("-")), None)
    if flag is None:
        return f"`{given[0]}` has no place here: an argument begins with --.", next(
            (f"Did you mean {each} VALUE?" for each in options(parser) if each == f"--{given[0].partition('=')[0]}"), ""
        )
    name = re.split("[=:]", flag)[0]
    known = options(parser)
    if name in known:  # such as --data.limit:3
        return f"`{flag}` cannot be read.", f"Did you mean {name} {flag[len(name) + 1 :]}?"
    return f"`{name}` is no argument of this command.", _similar(name, parser)


def _similar(name: str, parser: argparse.ArgumentParser) -> str:
    """What a name that is none may have meant, or what there is in its group; written as the name was."""
    known = [*options(parser), *_inner_options(parser)]
    if not name.startswith("-"):
        known = [each.removeprefix("--") for each in known]
    meant = did_you_mean(name, known)
    group = f"{name.rpartition('.')[0]}."
    inside = [each.removeprefix(group) for each in known if each.startswith(group) and group != "."]
    return meant or (f"`{group[:-1]}` has {', '.join(inside[:_SHOWN])}." if inside else "")


def _unknown_key(found: re.Match[str], parser: argparse.ArgumentParser, args: Sequence[str]) -> Lines:
    key = ".".join(part for part in (found["group"], found["key"]) if part)
    place = place_of(key, args)
    kind = "setting" if place.file is not None else "argument of this command"
    return f"{place.shown()} is no {kind}.", _similar(place.key if place.file else f"--{place.key}", parser)


def _wrong_value(found: re.Match[str], parser: argparse.ArgumentParser, args: Sequence[str]) -> Lines:
    # Those of a class's arguments stand inside those of the argument that takes the class.
    inner = list(re.finditer(r"Parser key \"(.*?)\":", found.string))
    key, message = inner[-1][1], found.string[inner[-1].end() :]
    place = place_of(key, args)
    action = _action(parser, key)
    given = re.search(r"(?:Got|Given) value: ?(.*)", message)
    value = _one_line(given[1]) if given else (place.value or "")
    kind = getattr(action, "_typehint", None)
    if "Unable to load config" in message:
        likely = (f"--{key}.path", f"--{key}.name") if "." in value else (f"--{key}.name", f"--{key}.path")
        hint = next((f"Did you mean {name} {value}?" for name in likely if name in options(parser)), "")
        return f"{place.assigned(value)}: no such YAML file with settings of `{key}`.", hint
    classes = _classes(kind) if kind is not None else []
    if classes and "dot import path" in message:
        named = re.search(r"dot import path string: (.*)", message)
        return _wrong_class(place, named[1] if named else value, classes)
    if not given:
        return f"{place.assigned(value)}: {_one_line(message)[:_LONGEST]}", ""
    choices = [str(each) for each in get_args(kind)] if get_origin(kind) is Literal else []
    expected = type_words(kind) if kind is not None else _expected(message)
    return f"{place.assigned(value)} is not valid: expected {expected}.", did_you_mean(value, choices)


def _wrong_class(place: Place, value: str, classes: Sequence[type]) -> Lines:
    from sphere_pl.commands.configs import group_files

    names = sorted({each.__name__ for each in classes})
    groups = [group for group in group_files() if group.rpartition("/")[2] == value.lower().replace("-", "_")]
    groups.sort(key=lambda group: (not group.startswith(place.key.rpartition(".")[2]), group.count("/")))
    hint = did_you_mean(value, names)
    if groups:
        meant = f"{hint.removesuffix('?')}, or" if hint else "Did you mean"
        hint = f"{meant} --config {groups[0]}, which brings its settings?"
    known = f"Known: {', '.join(names)}." if len(names) <= 12 else "Give its import path, such as package.module.Name."
    return f"{place.assigned(value)} names no class that is known here. {known}", hint


def _ambiguous(found: re.Match[str], parser: argparse.ArgumentParser, args: Sequence[str]) -> Lines:
    return f"`{found[1]}` is no argument of this command.", did_you_mean(found[1], options(parser))


def _no_value(found: re.Match[str], parser: argparse.ArgumentParser, args: Sequence[str]) -> Lines:
    name = found[1].split("/")[-1]
    action = _action(parser, name.lstrip("-"))
    return f"`{name}` needs a value: {_wanted(action)}.", ""


def _invalid(found: re.Match[str], parser: argparse.ArgumentParser, args: Sequence[str]) -> Lines:
    name, value = found[1].split("/")[-1], str(ast.literal_eval(found[2]))
    action = _action(parser, name.lstrip("-"))
    choices = [str(each) for each in (action.choices or ())] if action is not None else []
    return f"`{name} {shlex.quote(value)}` is not valid: expected {_wanted(action)}.", did_you_mean(value, choices)


def _missing(found: re.Match[str], parser: argparse.ArgumentParser, args: Sequence[str]) -> Lines:
    parts = []
    for name in found[1].split(", "):
        action = _action(parser, name.lstrip("-"))
        about = _help(action)
        shown = f"--{name}" if action is not None and action.option_strings and not name.startswith("-") else name
        parts.append(f"{shown} ({about})" if about else shown)
    return f"Missing: {', '.join(parts)}.", ""


def _bad_file(found: re.Match[str], parser: argparse.ArgumentParser, args: Sequence[str]) -> Lines:
    for file in yaml_files(args):
        try:
            yaml.safe_load(file.read_text(encoding="utf-8"))
        except yaml.MarkedYAMLError as error:
            where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
            return f"{file}{where} is not YAML: {error.problem or error.context}.", ""
        except (OSError, ValueError, yaml.YAMLError) as error:
            return f"{file} cannot be read: {error}.", ""
    return found.string[:_LONGEST], ""


_RULES: tuple[tuple[re.Pattern[str], Tell], ...] = (
    (re.compile(r"^unrecognized arguments: (.*)", re.IGNORECASE | re.DOTALL), _unrecognized),
    (
        re.compile(r"(?:(?:Group '(?P<group>.*?)'|Subcommand '.*?') does not accept option|Option) '(?P<key>.*?)'"),
        _unknown_key,
    ),
    (re.compile(r"^Parser key \"(?P<key>.*?)\":"), _wrong_value),
    (re.compile(r"ambiguous option: (\S+?)(?:=.*)? could match"), _ambiguous),
    (re.compile(r"argument (\S+): expected (?:one|at least one|\d+) argument"), _no_value),
    (re.compile(r"argument (\S+): invalid \S+(?: value)?: ('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"), _invalid),
    (re.compile(r"the following arguments are required: (.*)"), _missing),
    (re.compile(r"Key \"(.*?)\" is required"), _missing),
    (re.compile(r"Problems parsing config"), _bad_file),
)


def type_words(kind: Any) -> str:
    """A type as people say it.

    Example:
        >>> type_words(int | None), type_words(Literal["a", "b"]), type_words(list[str])
        ('a whole number or null', 'a or b', 'a list such as [a, b]')
    """
    origin = get_origin(kind)
    if origin in {Union, types.UnionType}:
        return " or ".join(dict.fromkeys(type_words(each) for each in get_args(kind)))
    if origin is Literal:
        *some, last = map(str, get_args(kind))
        return f"{', '.join(some)} or {last}" if some else last
    if origin in {list, tuple} and str in get_args(kind):
        return "a list such as [a, b]"
    name = getattr(origin or kind, "__name__", str(kind))
    return _WORDS.get({"Sequence": "list", "tuple": "list", "Mapping": "dict"}.get(name, name), name)


def _expected(message: str) -> str:
    """The types that a message of jsonargparse names, as people say them."""
    found = re.findall(r"Expected a <class '(?:\w+\.)*(\w+)'>", message)
    return " or ".join(dict.fromkeys(_WORDS.get(name, name) for name in found)) or "another value"


def _wanted(action: argparse.Action | None) -> str:
    kind = getattr(action, "_typehint", None) or getattr(action, "type", None)
    if action is not None and action.choices:
        return type_words(Literal[tuple(action.choices)])
    return type_words(kind) if isinstance(kind, type) or get_origin(kind) else (_help(action) or "one")


def _help(action: argparse.Action | None) -> str:
    return (action.help or "").split(";")[0].rstrip(".") if action is not None else ""


def _action(parser: argparse.ArgumentParser, name: str) -> argparse.Action | None:
    """The action of an option or a positional argument."""
    for action in parser._actions:
        if name == action.dest or f"--{name}" in action.option_strings or f"-{name}" in action.option_strings:
            return action
    return None


def _classes(kind: Any) -> list[type]:
    """The classes that a type admits by their name: those that it names, with those that inherit from them."""
    if get_args(kind):
        return [each for part in get_args(kind) for each in _classes(part)]
    if not isinstance(kind, type) or kind.__module__ in {"builtins", "pathlib"}:
        return []
    below: list[type] = type.__subclasses__(kind)
    heirs = [each for heir in below for each in _classes(heir)]
    return [each for each in [kind, *heirs] if not inspect.isabstract(each) and not each.__name__.startswith("_")]


def _inner_options(parser: argparse.ArgumentParser) -> list[str]:
    """Arguments of the classes that options name, such as --model.method.init_args.ridge."""
    found: dict[str, None] = {}
    for action in parser._actions:
        for each in _classes(getattr(action, "_typehint", None)):
            if action.option_strings and not action.option_strings[0].endswith(".help"):
                found |= dict.fromkeys(f"{action.option_strings[0]}.init_args.{name}" for name in _parameters(each))
    return list(found)


def _parameters(kind: type) -> list[str]:
    if "__init__" not in {name for each in kind.__mro__[:-1] for name in vars(each)}:
        return []
    try:
        return [name for name in inspect.signature(kind).parameters if name not in {"args", "kwargs"}]
    except (TypeError, ValueError):
        return []


def _one_line(text: str) -> str:
    return " ".join(text.split())
