"""Rows of hub data sets, and of data sets that were saved to a folder."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sphere_pl.data.records import Record
from sphere_pl.errors import UserError
from sphere_pl.storage.files import expanded

_SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` writes


def is_saved_set(path: str) -> bool:
    """Whether a folder holds a data set as `datasets` saves it."""
    return any((expanded(path) / name).is_file() for name in _SAVED)


def hub_records(identifier: str, file: str | None = None, split: str = "train") -> Iterator[Record]:
    """Rows of a hub data set.

    Args:
        identifier: Its id, such as `lukasthede/WikiBigEdit`, with `:` and a configuration if it has several; or a
            folder that holds one.
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

    if is_saved_set(identifier):
        rows = _saved_rows(identifier, split)
    else:
        name, _, config = identifier.partition(":") if not Path(identifier).exists() else (identifier, "", "")
        rows = hub_rows(refusal, *([name, config] if config else [name]), data_files=file, split=split)
    for index, row in enumerate(rows):
        yield Record(f"{identifier}, row {index}", index, row)


def _saved_rows(folder: str, split: str) -> Iterator[Mapping[str, Any]]:
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(expanded(folder)))
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"--data.path={folder!r} could not be read as a saved data set: {error}.") from error
    if isinstance(found, DatasetDict):
        if split not in found:
            raise UserError(f"--data.split={split!r} is no split of {folder}. It has {', '.join(found)}.")
        found = found[split]
    yield from found


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
