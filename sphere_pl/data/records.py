"""A raw record: named fields, and the place that they came from."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from sphere_pl.data.request import shorten
from sphere_pl.errors import UserError

_WHOLE = 2**53  # floats below hold every whole number
_ADVICE = "Correct this record, or leave it out (--data.invalid=skip leaves out all such)."


class Number(float):
    """A number of a JSON text that is no whole one, with the digits that were written."""

    def __new__(cls, text: str) -> "Number":
        """Read it."""
        return super().__new__(cls, text)

    def __init__(self, text: str) -> None:
        self.text = text


class Record(NamedTuple):
    """One raw record.

    Attributes:
        where: File and line, or data set and row, for messages.
        number: Position in the file, from 0.
        fields: What it holds.
        key: The name that it has in a file of named records.
        cells: Whether it is a table's row, in which nothing is an empty text.
    """

    where: str
    number: int
    fields: Mapping[str, Any]
    key: str = ""
    cells: bool = False

    def get(self, name: str, kind: type | tuple[type, ...] = str) -> Any:
        """A field that must be there; `a.b` looks inside `a`. A number where a text is expected is its digits.

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
        if kind is str:
            value = self._as_text(name, value)
        if not isinstance(value, kind):
            expected = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
            raise UserError(
                f"{self.where}: the field '{name}' is {type(value).__name__} ({shorten(value, 40)}), expected "
                f"{expected}. {_ADVICE}"
            )
        return value

    def filled(self, name: str) -> str:
        """A text that must be there and not be blank, without space around it.

        Raises:
            UserError: If it is missing, blank or of another type.
        """
        text = str(self.get(name)).strip()
        if not text:
            raise UserError(f"{self.where}: the field '{name}' is empty. Correct this record, or leave it out.")
        return text

    def entity(self, name: str) -> str:
        """A text that must be there, by itself or as `{"str": ..., "id": ...}`, as CounterFact writes objects.

        Raises:
            UserError: If it is missing or of another type.
        """
        inside = ".str" if isinstance(self.get(name, object), Mapping) else ""
        return str(self.get(f"{name}{inside}"))

    def entity_id(self, name: str) -> str | None:
        """The id beside such a text, if there is one.

        Raises:
            UserError: If it is of another type.
        """
        value = self.get(name, object)
        return self.inner(name, 0, value).optional("id") if isinstance(value, Mapping) else None

    def _as_text(self, name: str, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        if not math.isfinite(value):
            raise UserError(f"{self.where}: the field '{name}' is {value}, which is no text. Leave it out if unknown.")
        if isinstance(value, Number):
            return value.text
        # Tables keep whole numbers as floats where some are missing: nobody has meant the year 1899.0.
        return str(int(value) if value == int(value) and abs(value) < _WHOLE else value)

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
        values = [self._as_text(name, value) for value in self.optional(name, list) or []]
        if not all(isinstance(value, str) for value in values):
            raise UserError(
                f"{self.where}: the field '{name}' must be a list of strings, found {shorten(values, 60)}. {_ADVICE}"
            )
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
                f"an object with named fields. {_ADVICE}"
            )
        return Record(f"{self.where}, {name}[{index}]", self.number, fields, self.key)
