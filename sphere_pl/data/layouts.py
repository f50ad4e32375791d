"""Records of a text: a JSON list, JSON lines, JSON under a key, or a table."""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from sphere_pl.data.fields import field_of
from sphere_pl.data.recognition import formats_of
from sphere_pl.data.records import Number, Record
from sphere_pl.data.request import shorten
from sphere_pl.errors import UserError

_JSON_ERRORS = (ValueError, RecursionError)  # malformed, a number of thousands of digits, or nested without end
_DELIMITERS = ",;\t|"
_LEVELS = 3  # of objects around a list of records
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')  # a cell as a whole
_COMMENTS = ("#", "//")  # what a line of JSON never begins with


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON text; one that gives a name twice means one of the two, and nobody can tell which."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{shorten(twice, 40)} stands twice in one object")
    return found


_loads = partial(json.loads, parse_float=Number, object_pairs_hook=_object)
_decoder = json.JSONDecoder(parse_float=Number, object_pairs_hook=_object)


def json_records(path: Path, text: str, key: str = "train", lines: bool = False) -> Iterator[Record]:
    """Records of a JSON text of any shape.

    Args:
        path: Where the text is from, for messages.
        text: The text.
        key: Which list of an object that holds several.
        lines: Whether a record a line is expected, so that a broken line is named as one.
    """
    first = next(line for line in text.split("\n") if line.strip())
    whole = _parsed(first)
    more = text.strip() != first.strip()
    if text.lstrip()[0] == "[" and not (lines and isinstance(whole, list) and not _is_objects(whole)):
        return json_list(path, text)
    if isinstance(whole, dict) and more:
        return json_lines(path, text)
    found = whole if not more else _parsed(text)
    if isinstance(found, dict):
        return _under_keys(path, found, key)
    return json_lines(path, text) if lines or not more or text.lstrip()[0] != "{" else json_sequence(path, text)


def _parsed(text: str) -> Any:
    """What a JSON text holds; None if it is none."""
    try:
        return _loads(text)
    except _JSON_ERRORS:
        return None


def _is_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def json_list(path: Path, text: str) -> Iterator[Record]:
    """Records of a list of objects, keeping track of the line each begins on."""
    position, index, line, counted, before = _skip(text, _skip(text, 0) + 1), 0, 1, 0, 0
    while position < len(text) and text[position] != "]":
        line, counted = line + text.count("\n", counted, position), position
        fields, end = _decoded(path, text, position, line)
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


def json_sequence(path: Path, text: str) -> Iterator[Record]:
    """Records of objects that follow one another, each of any number of lines, with or without commas between."""
    position, index, line, counted = _skip(text, 0), 0, 1, 0
    while position < len(text):
        line, counted = line + text.count("\n", counted, position), position
        fields, end = _decoded(path, text, position, line)
        yield _record(path, line, index, fields)
        position, index = _skip(text, end), index + 1
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)


def _decoded(path: Path, text: str, position: int, line: int) -> tuple[Any, int]:
    try:
        return _decoder.raw_decode(text, position)
    except _JSON_ERRORS as error:
        raise _malformed(path, getattr(error, "lineno", line), error) from error


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _malformed(path: Path, line: int, error: Exception) -> UserError:
    reason = str(getattr(error, "msg", error)) or type(error).__name__
    return UserError(f"{path}, line {line}: malformed JSON: {reason}. Correct or remove this record.")


def json_lines(path: Path, text: str) -> Iterator[Record]:
    """Records of a text with one JSON object a line; blank lines, comments and commas at the end say nothing."""
    index = 0
    # Not splitlines(): it also breaks at characters that may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith(_COMMENTS):
            continue
        try:
            fields = _loads(line.rstrip().removesuffix(","))
        except _JSON_ERRORS as error:
            raise _malformed(path, number, error) from error
        yield _record(path, number, index, fields)
        index += 1


def _under_keys(path: Path, value: dict[str, Any], key: str, name: str = "", level: int = 0) -> Iterator[Record]:
    """Records that lie inside an object: in a list, column by column, or under names; or the one that it is."""
    lists = {inner: each for inner, each in value.items() if _is_objects(each)}
    rows = _columns(value)
    if formats_of(value) and not rows:
        yield Record(f"{path}, line 1", 0, value)
    elif lists:
        chosen = _chosen(path, lists, key)
        for index, fields in enumerate(lists[chosen]):
            yield Record(f"{path}, {name}{chosen}[{index}]", index, fields)
    elif rows:
        for index, fields in enumerate(rows):
            yield Record(f"{path}, row {index}", index, fields)
    elif _named(value):
        for index, (inner, fields) in enumerate(value.items()):
            yield Record(f"{path}, {name}{inner}", index, fields, key=str(inner))
    elif len(value) == 1 and level < _LEVELS and isinstance(held := next(iter(value.values())), dict):
        yield from _under_keys(path, held, key, f"{name}{next(iter(value))}.", level + 1)
    elif any(isinstance(each, str) for each in value.values()):
        yield Record(f"{path}, line 1", 0, value)  # whatever its reader makes of it
    else:
        raise UserError(
            f"{path}, line 1: expected a list of records, found an object with {', '.join(map(str, value))[:200]}. Put "
            "the records in a list."
        )


def _chosen(path: Path, lists: Mapping[str, Any], key: str) -> str:
    """Which of the lists in an object is meant."""
    if key in lists or len(lists) == 1:
        return key if key in lists else next(iter(lists))
    raise UserError(
        f"{path} holds several lists of records: {', '.join(lists)}. Name one of them: --data.split={min(lists)}."
    )


def _named(value: Mapping[str, Any]) -> bool:
    """Whether an object holds records under names of their own."""
    return bool(value) and all(isinstance(each, dict) and formats_of(each) for each in value.values())


def _columns(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Records of an object that holds columns, as lists or by row number; none if it does not."""
    known = {field_of(name) for name in value}
    if not {"prompt", "target"} <= known:
        return []
    columns = {name: list(each.values()) if isinstance(each, dict) else each for name, each in value.items()}
    lengths = {len(each) if isinstance(each, list) else -1 for each in columns.values()}
    if len(lengths) != 1 or lengths & {-1, 0}:
        return []
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def table(
    path: Path, text: str, columns: Sequence[str] = (), tabs: bool = False, plain: bool = False
) -> Iterator[Record]:
    """Records of a table, or of one with tabs and no quotation marks, as GLUE's files are.

    Rows and nameless columns that hold nothing, as spreadsheets leave them at the end, say nothing.

    Args:
        path: Where the text is from, for messages.
        text: The rows.
        columns: Names of the columns, for a text whose first row does not hold them; a header if left out.
        tabs: Whether cells are separated by tabs; otherwise the header tells: commas, semicolons, tabs or bars.
        plain: Whether quotation marks are ordinary characters.
    """
    text, delimiter = _delimiter(text, "\t" if tabs else "," if columns else "")
    rows = _cells(path, text, delimiter, plain)
    first = next(rows, (1, []))
    headed = set(columns) <= set(first[1])
    names = first[1] if headed else list(columns)
    named = [name for name in names if name.strip()]
    if len(set(named)) < len(named):
        raise UserError(f"{path}, line 1: the header names a column twice: {', '.join(named)[:200]}.")
    filled = (row for row in (rows if headed else chain([first], rows)) if plain or any(map(str.strip, row[1])))
    for index, (line, cells) in enumerate(filled):
        if len(cells) != len(names):
            raise UserError(
                f"{path}, line {line}: the row does not have as many cells as the header ({len(cells)}, not "
                f"{len(names)}: {', '.join(names)[:200]})."
            )
        fields = {name: cell for name, cell in zip(names, cells, strict=True) if name.strip() or cell.strip()}
        yield _record(path, line, index, fields)._replace(cells=True)


def _delimiter(text: str, given: str) -> tuple[str, str]:
    """A table's text and what separates its cells: as Excel's first line says, or what cuts the header into names."""
    header, _, rest = text.partition("\n")
    if header.strip().lower().startswith("sep=") and len(header.strip()) == 5:
        return rest, header.strip()[-1]
    if given and given in header:
        return text, given

    def known(sign: str) -> tuple[int, int]:
        names = next(csv.reader([header], delimiter=sign), [])
        return sum(field_of(name) is not None for name in names), len(names)

    return text, max(_DELIMITERS, key=known)


def _cells(path: Path, text: str, delimiter: str, plain: bool) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, each with the line it begins on."""
    literal = not plain and _quotes_are_text(text, delimiter)
    reader = _reader(text, delimiter, plain or literal)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, [_unquoted(cell) for cell in row] if literal else row
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {line}: malformed CSV: {error}. A cell that holds quotation marks stands in quotation marks "
            "itself, those in it doubled. Use a .jsonl file for long texts."
        ) from error


def _reader(text: str, delimiter: str, plain: bool) -> Any:
    """The rows of a text; strict, as a cell that goes on behind its quotation mark would lose it."""
    after = text.partition("\n")[0].split(delimiter)[1:]
    spaced = not plain and bool(after) and all(name[:1] == " " for name in after)
    # StringIO, not splitlines(): it also breaks at characters that may stand inside a cell.
    return csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL,
        strict=True,
        skipinitialspace=spaced,
    )


def _quotes_are_text(text: str, delimiter: str) -> bool:
    """Whether each line is a row as it stands, and quotation marks cannot be those of cells.

    A mark that nobody doubled, of inches or of a quotation, would swallow all lines up to the next one. Where that next
    one closes it, tabs tell: a cell may hold commas and newlines, hardly ever tabs and newlines.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    cuts = {line.count(delimiter) for line in lines}
    if '"' not in text or len(cuts) > 1 or cuts <= {0}:
        return False
    try:
        return sum(map(bool, _reader(text, delimiter, plain=False))) < len(lines) and delimiter == "\t"
    except csv.Error:
        return True


def _unquoted(cell: str) -> str:
    """What a cell holds, of which the quotation marks around are no part."""
    whole = _QUOTED.fullmatch(cell.strip())
    return whole[1].replace('""', '"') if whole else cell


def _record(path: Path, line: int, index: int, fields: Any, place: str = "") -> Record:
    where = f"{path}, line {line}{place}"
    if not isinstance(fields, dict):
        raise UserError(f"{where}: expected an object with named fields, found {type(fields).__name__}.")
    return Record(where, index, fields)
