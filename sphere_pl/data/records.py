"""Raw records from local files and the hub, each with the place it came from."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from sphere_pl.data.request import shorten
from sphere_pl.errors import UserError

_JSON_ERRORS = (ValueError, RecursionError)  # malformed, a number of thousands of digits, or nested without end


class Record(NamedTuple):
    """One raw record.

    Attributes:
        where: File and line, or data set and row, for messages.
        number: Position in the file, from 0.
        fields: What it holds.
    """

    where: str
    number: int
    fields: Mapping[str, Any]

    def get(self, name: str, kind: type | tuple[type, ...] = str) -> Any:
        """A field that must be there; `a.b` looks inside `a`.

        Raises:
            UserError: If it is missing or of another type, naming the place and the fields that are there.
        """
        value: Any = self.fields
        for part in name.split("."):
            # The hub fills what a record lacks with None.
            if not isinstance(value, Mapping) or value.get(part) is None:
                there = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
                raise UserError(
                    f"{self.where}: the field '{name}' is missing or empty (found: {there[:200]}). Check that the file "
                    "is of the kind it is read as, or correct this record."
                )
            value = value[part]
        if not isinstance(value, kind):
            expected = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
            raise UserError(
                f"{self.where}: the field '{name}' is {type(value).__name__} ({shorten(value, 40)}), expected "
                f"{expected}."
            )
        return value

    def optional(self, name: str, kind: type | tuple[type, ...] = str) -> Any:
        """A field that may be missing (then None) and is otherwise of the type.

        Raises:
            UserError: If it is there and of another type.
        """
        return None if self.fields.get(name) is None else self.get(name, kind)

    def strings(self, name: str) -> tuple[str, ...]:
        """A field that may be missing and is otherwise a list of strings.

        Raises:
            UserError: If it is something else.
        """
        values = self.optional(name, list) or []
        if not all(isinstance(value, str) for value in values):
            raise UserError(f"{self.where}: the field '{name}' must be a list of strings, found {shorten(values, 60)}.")
        return tuple(values)

    def error(self, trouble: str) -> UserError:
        """What to raise about this record."""
        return UserError(f"{self.where}: {trouble}")

    def inner(self, name: str, index: int, fields: Any) -> "Record":
        """One object of a list inside this record, as a record of its own.

        Raises:
            UserError: If it is no object.
        """
        if not isinstance(fields, Mapping):
            raise UserError(
                f"{self.where}: item {index} of '{name}' is {type(fields).__name__} ({shorten(fields, 40)}), expected "
                "an object with named fields."
            )
        return Record(f"{self.where}, {name}[{index}]", self.number, fields)


def read_records(path: str | Path, file: str | None = None) -> Iterator[Record]:
    """Read a JSON list, JSON lines or CSV with a header.

    Args:
        path: A file, or a folder that holds it.
        file: Which file of the folder; needed where there are several.

    Raises:
        UserError: If the file is missing, empty, not UTF-8, or malformed; the line is named.
    """
    path = find_file(Path(path).expanduser(), file)
    if path.suffix.lower() not in _READERS:
        raise UserError(f"--data.path={str(path)!r} must be a {', '.join(_READERS)} file.")
    yield from _READERS[path.suffix.lower()](path, read_text(path))


def read_text(path: Path) -> str:
    """The text of a file of records.

    Raises:
        UserError: If it cannot be read, is not UTF-8 or holds nothing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}). Convert it to UTF-8 and try again.") from error
    except OSError as error:
        raise UserError(f"{path} could not be read: {error.strerror}. Check the path.") from error
    if not text.strip():
        raise UserError(f"{path} is empty. Expected records.")
    return text


def find_file(path: Path, file: str | None = None) -> Path:
    """The data file that a path means: itself, or the one in a folder.

    Raises:
        UserError: If the folder holds none, or several of which none is named.
    """
    if not path.is_dir():
        if file is not None:
            raise UserError(f"--data.file={file!r} names a file of a folder, but --data.path={str(path)!r} is none.")
        return path
    if file is not None:
        return path / file
    found = sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in _READERS)
    if len(found) != 1:
        held = f"{len(found)} data files ({', '.join(found[:8])})" if found else f"no {', '.join(_READERS)} file"
        raise UserError(f"--data.path={str(path)!r} is a folder with {held}. Name one: --data.file=<name>.")
    return path / found[0]


def _read_json(path: Path, text: str) -> Iterator[Record]:
    """Read a list of objects, keeping track of the line each begins on."""
    decoder = json.JSONDecoder()
    position = _skip(text, 0)
    if text[position] != "[":
        raise UserError(
            f"{path}, line 1: expected a list of records, found {text[position]!r}. If every line is a record of its "
            "own, name the file .jsonl."
        )
    position, index, line, counted, before = _skip(text, position + 1), 0, 1, 0, 0
    while position < len(text) and text[position] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            fields, end = decoder.raw_decode(text, position)
        except _JSON_ERRORS as error:
            raise _malformed(path, getattr(error, "lineno", line), error) from error
        # A file of a single line is common; there the line alone would not tell records apart.
        yield _record(path, line, index, fields, place=f" (record {index + 1})" if line == before else "")
        position, index, before = _skip(text, end), index + 1, line
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif text[position : position + 1] != "]":
            break
    if text[position : position + 1] != "]":
        raise UserError(f"{path}: the list is not closed after record {index}; the file seems cut off.")
    if _skip(text, position + 1) < len(text):
        line = 1 + text.count("\n", 0, _skip(text, position + 1))
        raise UserError(f"{path}, line {line}: something follows the list of records. Expected one list and no more.")


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _malformed(path: Path, line: int, error: Exception) -> UserError:
    reason = str(getattr(error, "msg", error)) or type(error).__name__
    return UserError(f"{path}, line {line}: malformed JSON: {reason}. Correct or remove this record.")


def json_lines(path: Path, text: str) -> Iterator[Record]:
    """Records of a text with one JSON object a line."""
    index = 0
    # Not splitlines(): it also breaks at characters that may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except _JSON_ERRORS as error:
            raise _malformed(path, number, error) from error
        yield _record(path, number, index, fields)
        index += 1


def table(path: Path, text: str, columns: Sequence[str] = (), tabs: bool = False) -> Iterator[Record]:
    """Records of a CSV text, or of one with tabs and no quotation marks, as GLUE's files are.

    Args:
        path: Where the text is from, for messages.
        text: The rows.
        columns: Names of the columns, for a text whose first row does not hold them; a header if left out.
        tabs: Whether cells are separated by tabs, quotation marks being ordinary characters.
    """
    rows = _cells(path, text, tabs)
    first = next(rows, (1, []))
    headed = set(columns) <= set(first[1])
    names = first[1] if headed else list(columns)
    if len(set(names)) < len(names):
        raise UserError(f"{path}, line 1: the header names a column twice: {', '.join(names)[:200]}.")
    for index, (line, cells) in enumerate(rows if headed else chain([first], rows)):
        if len(cells) != len(names):
            raise UserError(
                f"{path}, line {line}: the row does not have as many cells as the header ({len(cells)}, not "
                f"{len(names)}: {', '.join(names)[:200]})."
            )
        yield _record(path, line, index, dict(zip(names, cells, strict=True)))


def _cells(path: Path, text: str, tabs: bool) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, each with the line it begins on."""
    # StringIO, not splitlines(): it also breaks at characters that may stand inside a cell.
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: malformed CSV: {error}. Use a .jsonl file for long texts.") from error


def _record(path: Path, line: int, index: int, fields: Any, place: str = "") -> Record:
    where = f"{path}, line {line}{place}"
    if not isinstance(fields, dict):
        raise UserError(f"{where}: expected an object with named fields, found {type(fields).__name__}.")
    return Record(where, index, fields)


_READERS: dict[str, Callable[[Path, str], Iterator[Record]]] = {
    ".json": _read_json,
    ".jsonl": json_lines,
    ".csv": table,
}


def hub_records(identifier: str, file: str | None = None, split: str = "train") -> Iterator[Record]:
    """Rows of a hub data set.

    Args:
        identifier: Its id, such as `lukasthede/WikiBigEdit`.
        file: Read only this file of it; needed where its files have different fields.
        split: The split to read.

    Raises:
        UserError: If the hub does not give it.
    """

    def refusal(reason: str) -> str:
        return (
            f"--data.path={identifier!r} is no file, and the hub did not give it (file: {file}, split: {split}): "
            f"{reason} Give a local .json, .jsonl or .csv file, or a data set that you can reach."
        )

    for index, row in enumerate(hub_rows(refusal, identifier, data_files=file, split=split)):
        yield Record(f"{identifier}, row {index}", index, row)


def hub_rows(refusal: Callable[[str], str], *names: str | None, **options: Any) -> Iterator[Mapping[str, Any]]:
    """Rows of a hub data set, whatever they are for.

    Args:
        refusal: From the first line of what went wrong to the message that the user gets.
        *names: The data set and, if it has several, its configuration, as `datasets.load_dataset` takes them.
        **options: Further arguments of `datasets.load_dataset`.

    Raises:
        UserError: If the hub does not give it.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        yield from load_dataset(*names, **options)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise UserError(refusal((str(error).splitlines() or [type(error).__name__])[0])) from error
