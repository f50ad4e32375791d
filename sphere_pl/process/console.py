"""What is written on the screen: any text on any console, and a reader that has gone."""

import codecs
import os
import sys
from typing import TextIO

from rich.console import Console

_FALLBACKS = "sphere_pl.fallbacks"
_SIGNS = {
    "±": "+-", "→": "->", "←": "<-", "Δ": "d", "…": "...", "–": "-", "—": "-", "−": "-", "×": "x", "·": ".",
    "≥": ">=", "≤": "<=", "≈": "~", "“": '"', "”": '"', "‘": "'", "’": "'", "•": "*", "\N{NO-BREAK SPACE}": " ",
    "✓": "+", "✗": "x",
}  # fmt: skip
_LINES, _UPRIGHTS = "─━═╌╍┄┅╴╶╸╺", "│┃║┆┇┊┋╎╏"


def prepare_streams() -> None:
    """Let standard output and standard error take every text, whatever the console's encoding.

    A sign that the encoding lacks becomes one that it has (`±` is `+-`), a byte of a file's name that is no text comes
    out as the byte that it is, and anything else as its code point.
    """
    codecs.register_error(_FALLBACKS, _fall_back)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_FALLBACKS)


def _fall_back(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    refused = error.object[error.start : error.end]
    if "\udc80" <= refused[0] <= "\udcff":
        return bytes([ord(refused[0]) - 0xDC00]), error.start + 1
    return "".join(map(_plain, refused)), error.end


def _plain(sign: str) -> str:
    """A sign in ASCII."""
    if sign in _SIGNS:
        return _SIGNS[sign]
    if sign in _LINES:
        return "-"
    if sign in _UPRIGHTS:
        return "|"
    if "\u2500" <= sign <= "\u257f":  # corners and crossings
        return "+"
    if "\u2580" <= sign <= "\u259f":  # blocks, of which bars are made
        return "#"
    return sign.encode("ascii", "backslashreplace").decode()


def as_shown(text: str, console: Console) -> str:
    """Text as `prepare_streams` lets a console show it: for a table, where a longer sign would shift the columns."""
    encoding = console.encoding
    try:
        return text.encode(encoding).decode(encoding)
    except UnicodeEncodeError:
        return "".join(map(_plain, text))


def say(text: str, console: Console | None = None) -> None:
    """Write a line as it is: rich would fold long ones, and take brackets and `:names:` in a path for its own.

    Args:
        text: The line.
        console: Where to; standard output if None.
    """
    stream: TextIO = sys.stdout if console is None else console.file  # type: ignore[assignment]
    if console is None or not console.quiet:
        stream.write(f"{text}\n")


def finish_output() -> None:
    """Flush what is left; a reader who has gone (`| head`) has seen what he wanted, and is no error."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            # The interpreter flushes again when it ends, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except (OSError, ValueError):  # a full disk behind `> file`, a closed stream: there is nowhere to say so
            continue
