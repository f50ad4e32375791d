"""`fit --help` on one screen: the arguments that most runs need, with the texts that the parser has for them."""

import argparse
import re
import textwrap
from typing import Any, Literal, get_args, get_origin

from sphere_pl.commands.parsers import Explained

WIDTH = 100
_INDENT = 30

# Which arguments are shown, under which heading. What is said about each is the parser's.
SHOWN = {
    "facts": ("data.name", "data.path", "data.limit", "data.batch_size"),
    "model and method": ("model.name", "model.layers", "model.method"),
    "SPHERE": ("projection.strength",),
    "the run": ("run_dir", "from", "ckpt_path", "retry", "config"),
}
EXAMPLES = (
    ("", "SPHERE on AlphaEdit, 100 built-in facts"),
    ("--data.limit 20 --run_dir runs/small", "a smaller run, in a folder of your own"),
    ("--data.path mine.jsonl", "your own facts, one a line"),
    ("--config method/memit --model.name gpt2", "another method, another model"),
    ("--projection.strength 0", "without SPHERE"),
    ("--run_dir runs/small --ckpt_path last", "resume an interrupted run"),
    ("--from runs/small --data.path more.jsonl", "add facts to a finished run"),
)


def short_help(parser: Explained, defaults: Any) -> str:
    """The help of a command with hundreds of arguments, on one screen.

    Args:
        parser: Its parser.
        defaults: A mapping from names of arguments to their defaults.
    """
    command = parser.help_command().removesuffix(" --help")
    lines = [f"usage: {command} [--config GROUP_OR_FILE ...] [--ARGUMENT VALUE ...]", ""]
    for heading, names in SHOWN.items():
        lines.append(f"{heading}:")
        for name in names:
            lines += _option(argument(parser, name), defaults.get(name))
    lines += ["", "examples:"]
    width = max(len(arguments) for arguments, _ in EXAMPLES)
    lines += [f"  fit {arguments:<{width}}  {about}" for arguments, about in EXAMPLES]
    lines += ["", f"all arguments:   {command} --help_all", f"one method's:    {command} --model.method.help MEMIT"]
    return "\n".join(lines) + "\n"


def argument(parser: argparse.ArgumentParser, name: str) -> argparse.Action:
    """The parser's argument of that name.

    Raises:
        KeyError: If it has none.
    """
    for action in parser._actions:
        if f"--{name}" in action.option_strings:
            return action
    raise KeyError(name)


def _option(action: argparse.Action, default: Any) -> list[str]:
    name = next(each for each in action.option_strings if each.startswith("--"))
    head = f"  {name} {_value(action)}"
    text = _about(action.help or "")
    shown = _default(default)
    if shown:
        text = f"{text} (default: {shown})"
    text = text.replace("``", "")
    lines = textwrap.wrap(text, WIDTH - _INDENT, max_lines=2, placeholder=" ...")
    if len(head) >= _INDENT:
        return [head, *(" " * _INDENT + line for line in lines)]
    first, *rest = lines or [""]
    return [f"{head:<{_INDENT}}{first}".rstrip(), *(" " * _INDENT + line for line in rest)]


def _value(action: argparse.Action) -> str:
    kind = getattr(action, "_typehint", None)
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if kind is bool:
        return "true|false"
    if action.nargs in {0, "?"}:
        return ""
    return str(action.metavar or action.dest.rpartition(".")[2].upper())


def _about(text: str) -> str:
    """The first sentence of a help text."""
    return re.split(r"(?<=[a-z`)])\.(?:\s|$)", " ".join(text.replace("%%", "%").split()), maxsplit=1)[0]


def _default(value: Any) -> str:
    if isinstance(value, dict) or hasattr(value, "class_path"):
        return str(value["class_path"]).rpartition(".")[2]
    return "" if value is None or value is False or value == [] else str(value)
