"""The data of a task: from the user's folder, or from the hub."""

from collections.abc import Iterator
from pathlib import Path

from sphere_pl.abilities.task import Item, Source, Task
from sphere_pl.data.files import read_text
from sphere_pl.data.hub import hub_rows
from sphere_pl.data.layouts import json_lines, table
from sphere_pl.data.records import Record
from sphere_pl.errors import UserError
from sphere_pl.storage.files import expanded


def read_items(task: Task, data_dir: str | None) -> list[Item]:
    """All items of a task.

    Args:
        task: The task.
        data_dir: A folder with the data; the hub if None.

    Raises:
        UserError: If the data is missing or a record is not what it should be.
    """
    return list(task.read(*(_records(task, source, data_dir) for source in task.sources)))


def _records(task: Task, source: Source, data_dir: str | None) -> Iterator[Record]:
    if data_dir is None:
        return _hub_records(task, source)
    return _file_records(find_files(task, source, expanded(data_dir)), source)


def find_files(task: Task, source: Source, folder: Path) -> list[Path]:
    """The files of a table: those of the first alternative that is there whole.

    Raises:
        UserError: If none is.
    """
    if not folder.is_dir():
        raise UserError(
            f"--abilities.data_dir={str(folder)!r} is no folder. Give the folder that holds the tasks' data."
        )
    for patterns in source.files:
        found = [sorted(folder.glob(pattern)) for pattern in patterns]
        if all(found):
            return [path for paths in found for path in paths]
    wanted = " or ".join(" and ".join(patterns) for patterns in source.files)
    raise UserError(
        f"The task {task.name!r} needs {wanted} in --abilities.data_dir={str(folder)!r}, but it is not there. Get it "
        f"from {source.address}, or leave --abilities.data_dir out to read {_hub_name(source)} from the hub."
    )


def _file_records(paths: list[Path], source: Source) -> Iterator[Record]:
    for path in paths:
        text = read_text(path)
        if path.suffix == ".jsonl":
            records = json_lines(path, text)
        else:
            records = table(path, text, source.columns, tabs=path.suffix == ".tsv", plain=path.suffix == ".tsv")
        for record in records:
            yield record._replace(fields={**record.fields, "file": path.stem})


def _hub_records(task: Task, source: Source) -> Iterator[Record]:
    def refusal(reason: str) -> str:
        wanted = " or ".join(" and ".join(patterns) for patterns in source.files)
        return (
            f"The task {task.name!r} reads {_hub_name(source)} from the hub, which did not give it: {reason} Without a "
            f"hub, put {wanted} (from {source.address}) into a folder and name it with --abilities.data_dir."
        )

    for index, row in enumerate(hub_rows(refusal, source.hub, source.config, split=source.split)):
        yield Record(f"{source.hub}, {source.split}, row {index}", index, row)


def _hub_name(source: Source) -> str:
    return f"{source.hub} ({source.config + ', ' if source.config else ''}{source.split})"
