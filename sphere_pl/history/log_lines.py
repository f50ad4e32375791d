"""The lines of the edit log: the records as JSON, and read again with every field checked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from sphere_pl.data.request import EditRequest, Form
from sphere_pl.errors import UserError
from sphere_pl.history.entries import FORMAT, Ancestor, Entry, Header, Matrix
from sphere_pl.model.loading import Dtype


def line_of(value: Mapping[str, Any]) -> str:
    """A record's fields as a line."""
    # ASCII, so that no kind of line break inside a text can end the line.
    return json.dumps(value, separators=(",", ":")) + "\n"


def read_lines(path: Path, text: str) -> tuple[Header, list[Entry]]:
    """What the lines of a log say; a torn last line is left out.

    Args:
        path: Where they are from, for messages.
        text: All of them.

    Raises:
        UserError: If there is none, or one is not what a run writes.
    """
    lines = text.split("\n")[:-1]  # what stands after the last line's end is a line that a kill has torn
    if not lines:
        raise UserError(f"{path} is empty: the run ended before its first batch. Run it again.")
    parsed = [_parsed(path, number, line) for number, line in enumerate(lines, 1)]
    try:
        header = _header(parsed[0])
        entries = [_entry(line) for line in parsed[1:]]
    except (TypeError, LookupError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is not an edit log that this version reads: {error}. Restore it from a copy, or read it with the "
            "version that wrote it."
        ) from error
    _check_order(path, entries)
    return header, entries


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise _damaged(path, number, f"is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise _damaged(path, number, "is not an object")
    return value


def _damaged(path: Path, number: int, what: str) -> UserError:
    return UserError(f"{path}, line {number} {what}: the log was altered or damaged. Restore it from a copy.")


def _header(line: dict[str, Any]) -> Header:
    if line.get("format") != FORMAT:
        raise ValueError(f"its format is {line.get('format')!r}, expected {FORMAT}")
    matrices = [
        Matrix(str(m["name"]), (int(m["shape"][0]), int(m["shape"][1])), bool(m["transposed"]))
        for m in line["matrices"]
    ]
    ancestors = [Ancestor(**_known(Ancestor, each)) for each in line.get("ancestors", [])]
    header = Header(**{**_known(Header, line), "matrices": matrices, "ancestors": ancestors})
    for each in ancestors:
        _check_types("an ancestor", vars(each), run_dir=str, entries=int, edits=int, recipe=dict, scores=dict)
    _check_types("the header", vars(header), model=str, dtype=str, fingerprint=str, method=str, layers=list)
    if header.dtype not in get_args(Dtype) or not all(type(layer) is int for layer in header.layers):
        raise ValueError(f"dtype {header.dtype!r} or layers {header.layers!r} are not what a run writes")
    if not isinstance(header.architecture, dict | None):
        raise TypeError(f"its architecture {header.architecture!r} is not what a run writes")
    if not isinstance(header.retrieval, dict | None):
        raise TypeError(f"its retrieval {header.retrieval!r} is not what a run writes")
    if header.restraint is not None:
        ratio, strength = header.restraint["cumulative_ratio"], header.restraint["strength"]
        _check_types("the restraint", {"ratio": ratio, "strength": strength}, ratio=float, strength=float)
        if not isinstance(header.restraint["modules"], str | None) or not 0 <= ratio < 1 or not 0 <= strength <= 1:
            raise ValueError(f"its restraint {header.restraint!r} is not what a run writes")
    return header


def _entry(line: dict[str, Any]) -> Entry:
    known = _known(Entry, line)
    known["sums"] = {name: (float(total), float(norm)) for name, (total, norm) in known.get("sums", {}).items()}
    entry = Entry(**known)
    where = f"entry {entry.number}"
    _check_types(where, vars(entry), number=int, base=int, edits=int, complete=bool, ranks=dict, requests=list)
    if entry.file is not None:
        _check_types(where, vars(entry), file=str, sha256=str)
    for request in entry.edit_requests():
        for name, kind in get_type_hints(EditRequest).items():
            _check_field(where, name, getattr(request, name), kind)
    return entry


def _check_types(where: str, values: Mapping[str, Any], **kinds: type) -> None:
    for name, kind in kinds.items():
        if type(values[name]) is not kind and not (kind is float and type(values[name]) is int):
            raise TypeError(f"{name!r} of {where} is {type(values[name]).__name__}, expected {kind.__name__}")


def _check_field(where: str, name: str, value: Any, kind: Any) -> None:
    texts = kind is str or kind == str | None
    if kind is Form:
        right = type(value.keeps) is bool and _of_texts(value[:-1])
    else:
        right = isinstance(value, str | None) if texts else _of_texts(value)
    if not right or (kind is str and value is None):
        raise TypeError(f"{name!r} of a request of {where} is not what a run writes")


def _of_texts(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(item, str) or _of_texts(item) for item in value)


def _known(kind: type, line: dict[str, Any]) -> dict[str, Any]:
    names = {each.name for each in fields(kind)}
    return {name: value for name, value in line.items() if name in names}


def _check_order(path: Path, entries: Sequence[Entry]) -> None:
    for place, entry in enumerate(entries, 1):
        if entry.number != place or not 0 <= entry.base < place:
            raise _damaged(path, place + 1, "is out of order")
