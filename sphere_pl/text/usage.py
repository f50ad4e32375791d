"""How a user started the program, and which name a mistyped one is most like."""

import difflib
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_ALIKE = 0.7  # difflib's ratio from which two names are taken for one
_CLOSE = 0.08  # names whose ratio is that much below the best are named beside it
_MOST = 3
_BEGINNING = 2  # letters of a name from which it may be one that was cut short
_SHARED = 0.3  # what the same beginning is worth
_INNER = 0.95  # what likeness of the last part alone is worth, beside likeness of the whole


def program() -> str:
    """The program as the user started it: `sphere_pl`, or `python -m sphere_pl` with the interpreter that was typed."""
    started = Path(sys.argv[0] or "python")
    if started.name == "__main__.py" and sys.orig_argv:
        return f"{shlex.quote(sys.orig_argv[0])} -m sphere_pl"
    return "sphere_pl" if started.stem == "sphere_pl" else "python -m sphere_pl"


def nearest(given: str, known: Iterable[str]) -> list[str]:
    """The names that are most like a mistyped one, the likeliest first; none if nothing is like it.

    Names have parts, apart by dots or slashes. Who gives only the last is shown the shortest names that end so.

    Example:
        >>> nearest("--limit", ["--data.limit", "--data.name", "--abilities.limit", "--model.contexts"])
        ['--data.limit', '--abilities.limit']
        >>> nearest("--model.nmae", ["--data.name", "--model.name"]), nearest("metod/memit", ["method/memit"])
        (['--model.name'], ['method/memit'])
    """
    wanted = _parts(given)
    scored = [(_likeness(wanted, _parts(name)), -len(_parts(name)), name) for name in dict.fromkeys(known)]
    best = max((likeness for likeness, _, _ in scored), default=0.0)
    if best < _ALIKE:
        return []
    close = [each for each in scored if each[0] >= max(_ALIKE, best - _CLOSE)]
    ranked = sorted(close, key=lambda each: each[:2], reverse=True)
    return [name for _, parts, name in ranked if parts == ranked[0][1]][:_MOST]


def _parts(name: str) -> list[str]:
    parts = name.lstrip("-").lower().replace("-", "_").replace("/", ".").split(".")
    return [part for part in parts if part != "init_args"]  # jsonargparse takes them with and without


def _likeness(given: Sequence[str], known: Sequence[str]) -> float:
    if len(given) < len(known) and list(known[len(known) - len(given) :]) == list(given):
        return 1.0
    if len(given[-1]) >= _BEGINNING and ".".join(known).startswith(".".join(given)):
        return 1.0
    if list(given[: len(known)]) == list(known):
        return 0.0  # the group is right, what it should hold is not there
    last = difflib.SequenceMatcher(None, given[-1], known[-1]).ratio()
    if len(given) > 1 and list(given[:-1]) == list(known[:-1]):
        return _SHARED + (1 - _SHARED) * last  # a long common beginning would make any two alike
    whole = difflib.SequenceMatcher(None, ".".join(given), ".".join(known)).ratio()
    if len(given) > 1:
        return whole
    return max(whole, _INNER * last)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A question that names what is most like a mistyped name; nothing if nothing is.

    Example:
        >>> did_you_mean("exprot", ["fit", "export"])
        'Did you mean export?'
    """
    found = nearest(given, known)
    return f"Did you mean {' or '.join([', '.join(found[:-1]), found[-1]] if found[1:] else found)}?" if found else ""


@contextmanager
def announced(text: str, quiet: bool = False) -> Iterator[None]:
    """Show a line on a terminal while something is done that has no bar yet, and take it away again."""
    shown = not quiet and sys.stderr.isatty()
    if shown:
        sys.stderr.write(text)
        sys.stderr.flush()
    try:
        yield
    finally:
        if shown:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
