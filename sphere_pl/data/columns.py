"""Columns of a user's file under the names that a reader knows: `--data.columns '{queries: paraphrases}'`."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sphere_pl.data.fields import NAMES, field_of, is_unused
from sphere_pl.data.records import Record
from sphere_pl.errors import UserError
from sphere_pl.text.usage import did_you_mean

Columns = Mapping[str, str | None]


def check_columns(columns: Columns) -> None:
    """Refuse a map to fields that there are not, or of two columns to one field.

    Raises:
        UserError: Naming the column and the known fields.
    """
    fields = [field for field in columns.values() if field is not None]
    for column, field in columns.items():
        if field is not None and field not in NAMES:
            raise UserError(
                f"--data.columns maps {column!r} to {field!r}, which is no field. {did_you_mean(field, NAMES)} Known: "
                f"{', '.join(NAMES)}; null leaves a column out."
            )
        if field is not None and fields.count(field) > 1:
            raise UserError(f"--data.columns maps two columns to {field!r}. Keep one of them, or map one to null.")


def rename_columns(records: Iterable[Record], columns: Columns) -> Iterator[Record]:
    """Records with the mapped columns under their fields' names.

    Columns that are neither mapped nor known are left out. A column may lie inside another one: `answers.text`.

    Raises:
        UserError: If the map names a column that no record has.
    """
    held = list(records)  # a map that fits nothing is said before what is wrong with the first record
    found = [{column: _inside(record.fields, column) for column in columns} for record in held]
    missing = [column for column in columns if all(values[column] is _ABSENT for values in found)]
    if missing:
        there = dict.fromkeys(str(name) for record in held for name in record.fields)
        hint = f"{did_you_mean(missing[0], there)} The columns are {', '.join(there)[:300]}.".strip()
        raise UserError(f"--data.columns names {missing[0]!r}, which no record has. {hint}")
    for record, values in zip(held, found, strict=True):
        yield record._replace(fields=_renamed(record.fields, columns, values))


_ABSENT = object()


def _renamed(fields: Mapping[str, Any], columns: Columns, found: Mapping[str, Any]) -> dict[str, Any]:
    mapped = {field: found[column] for column, field in columns.items() if field and found[column] is not _ABSENT}
    kept = {name: value for name, value in fields.items() if name not in columns and field_of(name) is not None}
    # A mapped column wins over one that has the field's name by chance.
    return mapped | {
        name: value for name, value in kept.items() if field_of(name) not in mapped and not is_unused(name)
    }


def _inside(fields: Mapping[str, Any], column: str) -> Any:
    if column in fields:
        return fields[column]
    value: Any = fields
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _ABSENT
        value = value[part]
    return value
