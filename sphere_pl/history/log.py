"""The files of the edit log: what every batch changed, and for which requests.

`edits.jsonl` in the run folder holds one line of JSON for the model and one for each entry, appended and never changed.
`edits/batch-00000.safetensors` holds the tensors of an entry. A tensor file is whole before its line is written, so a
run that is killed leaves at worst one file without a line, or a torn last line that readers leave out.

The state after entry `i` is the state after entry `base` (the one before, unless weights were put back) plus the change
of entry `i`; the state after entry 0 is the unedited model.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sphere_pl.data.request import EditRequest
from sphere_pl.errors import UserError
from sphere_pl.history.entries import Entry, Header, request_of
from sphere_pl.history.log_lines import line_of, read_lines
from sphere_pl.history.low_rank import Change, Factors
from sphere_pl.process.failures import doing
from sphere_pl.storage.files import write_atomically, write_text
from sphere_pl.text.numbers import counted

LOG_FILE = "edits.jsonl"
TENSOR_FOLDER = "edits"
_TENSOR_FILE = re.compile(r"batch-\d{5,}\.safetensors")


@dataclass(frozen=True)
class EditHistory:
    """A log that was read.

    Attributes:
        folder: The run folder.
        header: What the run edits.
        entries: In the order they were written.
    """

    folder: Path
    header: Header
    entries: list[Entry]

    @property
    def edits(self) -> int:
        """Requests seen so far."""
        return self.entries[-1].edits if self.entries else 0

    def number_at(self, edits: int | None) -> int:
        """The number of the last entry at which `edits` requests had been seen; at the end if None.

        Raises:
            UserError: If no batch ended there.
        """
        if edits is None:
            return len(self.entries)
        if edits == 0:
            return 0
        numbers = [entry.number for entry in self.entries if entry.edits == edits]
        if numbers:
            return numbers[-1]
        known = sorted({0, *(entry.edits for entry in self.entries)})
        near = sorted(sorted(known, key=lambda at: abs(at - edits))[:2])
        raise UserError(
            f"No batch of {self.folder} ended after {counted(edits, 'edit')}; the run has {self.edits}. Weights are "
            f"known between batches: the nearest are --at {' and --at '.join(map(str, near))}."
        )

    def chain(self, last: int) -> list[Entry]:
        """The entries whose changes add up to the state after entry `last`."""
        found = []
        while last > 0:
            found.append(self.entries[last - 1])
            last = found[-1].base
        return found[::-1]

    @property
    def requests(self) -> list[EditRequest]:
        """All requests of the stream so far, in order."""
        return [request_of(stored) for stored in self.stored_requests(len(self.entries))]

    def stored_requests(self, last: int) -> list[dict[str, Any]]:
        """The requests of the stream up to an entry, as the log has them."""
        return [request for entry in self.stream(last) for request in entry.requests]

    def stream(self, last: int) -> list[Entry]:
        """The entries up to one that bring the stream further; the requests of others were edited again."""
        found, seen = [], 0
        for entry in self.entries[:last]:
            if entry.edits > seen:
                found.append(entry)
            seen = max(seen, entry.edits)
        return found

    def tensors(self, entry: Entry) -> dict[str, Tensor]:
        """Read an entry's tensors and check their hash.

        Raises:
            UserError: If the file is missing, was altered, or its name leads elsewhere.
        """
        if not entry.complete:
            raise UserError(
                f"The change of batch {entry.number} was not kept: the edit log of {self.folder} had reached its size "
                "limit (--edit_log_gigabytes). Weights can be rebuilt up to the batch before it, with --at."
            )
        if entry.file is None:
            return {}
        if not _TENSOR_FILE.fullmatch(entry.file):
            raise UserError(
                f"{self.folder / LOG_FILE} names the file {entry.file!r}, expected one such as "
                "batch-00000.safetensors. Restore the log from a copy."
            )
        path = self.folder / TENSOR_FOLDER / entry.file
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != entry.sha256:
                raise UserError(
                    f"{path} has another SHA-256 than {LOG_FILE} says: it was altered or damaged. Restore it from a "
                    "copy, or rebuild only up to the batch before it."
                )
            return load(data)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path} could not be read: {error}. Restore it from a copy, or rebuild only up to the batch before it."
            ) from error


def pack(
    changes: Mapping[str, Change | None], systems: Mapping[str, Mapping[str, Tensor]] | None = None
) -> dict[str, Tensor]:
    """Name the tensors of an entry: changes, and what the method solved, such as keys and residuals."""
    tensors: dict[str, Tensor] = {}
    for name, change in changes.items():
        if isinstance(change, Factors):
            tensors |= {f"left/{name}": change.left, f"right/{name}": change.right}
        elif change is not None:
            tensors[f"full/{name}"] = change
    for name, system in (systems or {}).items():
        tensors |= {f"{kind}/{name}": tensor for kind, tensor in system.items()}
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}


def unpack(tensors: Mapping[str, Tensor], name: str) -> Change | None:
    """The change of one matrix; None if it has not changed."""
    if f"full/{name}" in tensors:
        return tensors[f"full/{name}"]
    if f"left/{name}" in tensors:
        return Factors(tensors[f"left/{name}"], tensors[f"right/{name}"])
    return None


def read_log(folder: Path) -> EditHistory:
    """Read the log of a run folder; a torn last line is left out.

    Raises:
        UserError: If there is none, or a line is not what a run writes.
    """
    path = folder / LOG_FILE
    try:
        text = path.read_text(encoding="utf-8", errors="strict")
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} holds no {LOG_FILE}: it is no run folder, or its run kept no edit log (--edit_log none). Give "
            "the folder of a run, the one with results.json."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} could not be read: {error}. Restore it from a copy.") from error
    header, entries = read_lines(path, text)
    return EditHistory(folder, header, entries)


def adopt(folder: Path, header: Header, history: EditHistory) -> EditHistory:
    """Begin a log with the entries of an earlier run, whose files it shares where the disk lets it.

    Files of a log are never changed, so that two names for one of them are as good as two copies.
    """
    (folder / TENSOR_FOLDER).mkdir(parents=True, exist_ok=True)
    for name in (entry.file for entry in history.entries if entry.file):
        with doing(f"copying {history.folder / TENSOR_FOLDER / name}"):
            _share(history.folder / TENSOR_FOLDER / name, folder / TENSOR_FOLDER / name)
    return write_log(folder, header, history.entries)


def write_log(folder: Path, header: Header, entries: Sequence[Entry] = ()) -> EditHistory:
    """Write the whole edits.jsonl of a folder that has its tensor files."""
    lines = [line_of(asdict(header)), *(line_of(asdict(entry)) for entry in entries)]
    write_text(folder / LOG_FILE, "".join(lines))
    return EditHistory(folder, header, list(entries))


def _share(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        write_atomically(target, lambda temporary: shutil.copyfile(source, temporary))


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def log_digest(folder: Path) -> str:
    """SHA-256 of a run's edits.jsonl."""
    return hashlib.sha256((folder / LOG_FILE).read_bytes()).hexdigest()


def append_entry(folder: Path, entry: Entry) -> None:
    """Add a line; it is on the disk when this returns."""
    path = folder / LOG_FILE
    with doing(f"writing {path}"), path.open("a", encoding="utf-8") as file:
        file.write(line_of(asdict(entry)))
        file.flush()
        os.fsync(file.fileno())


def write_tensors(folder: Path, number: int, tensors: dict[str, Tensor]) -> tuple[str, str]:
    """Write the tensor file of entry `number`; returns its name and hash."""
    name = f"batch-{number - 1:05d}.safetensors"
    data = save(tensors)
    write_atomically(folder / TENSOR_FOLDER / name, lambda temporary: temporary.write_bytes(data))
    return name, hashlib.sha256(data).hexdigest()


def truncate(history: EditHistory, entries: int) -> EditHistory:
    """Keep the first entries only, on the disk as well."""
    kept = history.entries[:entries]
    write_log(history.folder, history.header, kept)
    known = {entry.file for entry in kept}
    for path in _tensor_files(history.folder):
        if path.name not in known:
            path.unlink()
    return EditHistory(history.folder, history.header, kept)


def remove_log(folder: Path) -> None:
    """Delete the log of an earlier run in this folder, and nothing else."""
    (folder / LOG_FILE).unlink(missing_ok=True)
    for path in _tensor_files(folder):
        path.unlink()


def _tensor_files(folder: Path) -> list[Path]:
    return [path for path in (folder / TENSOR_FOLDER).glob("batch-*.safetensors") if _TENSOR_FILE.fullmatch(path.name)]


Kept = Literal["all", "changes", "none"]
