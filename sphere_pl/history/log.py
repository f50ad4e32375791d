"""The files of the edit log: what every batch changed, and for which requests.

`edits.jsonl` in the run folder holds one line of JSON for the model and one for each entry, appended and never changed.
`edits/batch-00000.safetensors` holds the tensors of an entry. A tensor file is whole before its line is written, so a
run that is killed leaves at worst one file without a line, or a torn last line that readers leave out.

The state after entry `i` is the state after entry `base` (the one before, unless weights were put back) plus the change
of entry `i`; the state after entry 0 is the unedited model.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sphere_pl.data.request import EditRequest, Form
from sphere_pl.errors import UserError
from sphere_pl.history.low_rank import Change, Factors
from sphere_pl.model.loading import Dtype
from sphere_pl.process.failures import doing
from sphere_pl.storage.files import write_atomically, write_text
from sphere_pl.text.numbers import counted

LOG_FILE = "edits.jsonl"
TENSOR_FOLDER = "edits"
FORMAT = 1
_TENSOR_FILE = re.compile(r"batch-\d{5,}\.safetensors")


@dataclass(frozen=True)
class Matrix:
    """An edited matrix.

    Attributes:
        name: Hugging Face name of the parameter.
        shape: `[d_out, d_in]`.
        transposed: Whether the model stores it as `[d_in, d_out]`.
    """

    name: str
    shape: tuple[int, int]
    transposed: bool


@dataclass(frozen=True)
class Ancestor:
    """A finished run whose entries a log begins with.

    Attributes:
        run_dir: Its folder, as it was named.
        entries: How many entries of the log are its own and its ancestors'.
        edits: How many requests had been seen at its end.
        finished: When it ended, UTC, as ISO 8601; empty if it is not known.
        scores: Its scores at the end, by name.
        recipe: How it turned keys and residuals into updates: the parts of its config.yaml that say so.
    """

    run_dir: str
    entries: int
    edits: int
    finished: str = ""
    scores: dict[str, float | None] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Header:
    """What the run edits, and how.

    Attributes:
        model: Hub id, absolute local folder, or the name of the embedded model.
        revision: Branch, tag or commit of a hub model.
        dtype: Floating-point type in which the model was edited.
        fingerprint: Hash of the unedited model in that type; see `statistics.fingerprint`.
        layers: Numbers of the edited blocks.
        matrices: The edited matrices, shallow to deep.
        method: The method and what its updates pass through, as shown in results.
        solvable: Whether keys and residuals are logged, so that edits can be taken out.
        restraint: Settings of PRUNE's restraint, under which the weights are scored and saved; None without it.
        architecture: The user's own description of the model's parts; None for a family of the table.
        format: Version of the log's format.
        ancestors: The runs that this one continues, the oldest first.
        retrieval: How the model reads the run's edits, whose method changes no weight; None for one that does.
        removed: Requests that were taken back before this run, with `from` (the run that held them) and `at` (when).
    """

    model: str
    revision: str | None
    dtype: str
    fingerprint: str
    layers: list[int]
    matrices: list[Matrix]
    method: str
    solvable: bool
    restraint: dict[str, Any] | None = None
    architecture: dict[str, Any] | None = None
    format: int = FORMAT
    ancestors: list[Ancestor] = field(default_factory=list)
    retrieval: dict[str, Any] | None = None
    removed: list[dict[str, Any]] = field(default_factory=list)

    @property
    def inherited(self) -> int:
        """How many entries of the log are those of earlier runs."""
        return self.ancestors[-1].entries if self.ancestors else 0


@dataclass(frozen=True)
class Entry:
    """One change of the weights.

    Attributes:
        number: Counted from 1.
        base: The entry whose state this one starts from; 0 is the unedited model.
        edits: Requests of the stream seen so far, this batch's included.
        requests: The batch's requests, fields as in `EditRequest`, empty ones left out; none for a change that was not
            a batch, such as a guard that puts weights back.
        file: The tensor file; None if nothing has changed.
        sha256: Its hash.
        complete: False if the change happened but was not kept, because the log had reached its size limit.
        ranks: Rank of each matrix' change; None where it is kept in full.
        sums: Sum and Frobenius norm of each matrix afterwards, float64: states are recognised by them.
        time: When it was written, UTC, as ISO 8601; empty in logs of earlier versions.
    """

    number: int
    base: int
    edits: int
    requests: list[dict[str, Any]] = field(default_factory=list)
    file: str | None = None
    sha256: str | None = None
    complete: bool = True
    ranks: dict[str, int | None] = field(default_factory=dict)
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    time: str = ""

    @property
    def case_ids(self) -> list[str]:
        """The case ids of the batch."""
        return [request["case_id"] for request in self.requests]

    def is_state(self, sums: Mapping[str, tuple[float, float]]) -> bool:
        """Whether matrices with these sums and norms are, as far as these tell, this entry's."""
        return same_state(self.sums, sums)

    def edit_requests(self) -> list[EditRequest]:
        """The batch's requests."""
        return [request_of(stored) for stored in self.requests]


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
        """The requests of the stream up to an entry, as the log has them.

        An entry that brings the stream no further holds requests that were edited again.
        """
        found: list[dict[str, Any]] = []
        seen = 0
        for entry in self.entries[:last]:
            found += entry.requests if entry.edits > seen else []
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
                "limit (--edit_log_gigabytes). Weights can be rebuilt up to the batch before it."
            )
        if entry.file is None:
            return {}
        if not _TENSOR_FILE.fullmatch(entry.file):
            raise UserError(
                f"{self.folder / LOG_FILE} names the file {entry.file!r}, expected batch-00000.safetensors."
            )
        path = self.folder / TENSOR_FOLDER / entry.file
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != entry.sha256:
                raise UserError(
                    f"{path} has another SHA-256 than {LOG_FILE} says: it was altered or damaged. Restore it from a "
                    f"copy, or rebuild only up to the batch before it."
                )
            return load(data)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} could not be read: {error}. The batch's change cannot be rebuilt.") from error


def sums_of(weights: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """What a state is recognised by: sum and Frobenius norm of each matrix, in float64."""
    return {
        name: (float(w.sum(dtype=torch.float64)), float(torch.linalg.vector_norm(w, dtype=torch.float64)))
        for name, w in weights.items()
    }


def same_state(first: Mapping[str, tuple[float, float]], second: Mapping[str, tuple[float, float]]) -> bool:
    """Whether two sets of sums and norms agree up to the rounding of float64; NaN agrees with nothing."""
    return first.keys() == second.keys() and all(
        abs(a - b) <= 1e-9 * norm
        for name, (_, norm) in first.items()
        for a, b in zip(first[name], second[name], strict=True)
    )


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
        raise UserError(f"{path} could not be read: {error}.") from error
    lines = text.split("\n")[:-1]  # what stands after the last line's end is a line that a kill has torn
    if not lines:
        raise UserError(f"{path} is empty: the run ended before its first batch. Run it again.")
    parsed = [_parse(path, number, line) for number, line in enumerate(lines, 1)]
    try:
        header = _header(parsed[0])
        entries = [_entry(line) for line in parsed[1:]]
    except (TypeError, LookupError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not an edit log that this version reads: {error}.") from error
    _check_order(path, entries)
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
    lines = [_line(asdict(header)), *(_line(asdict(entry)) for entry in entries)]
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
        file.write(_line(asdict(entry)))
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


def stored_request(request: EditRequest) -> dict[str, Any]:
    """The fields of a request that are not empty, as JSON can hold them."""
    plain = EditRequest("", "", "", "")._asdict()
    return {name: value for name, value in request._asdict().items() if value != plain[name]}


def request_of(stored: Mapping[str, Any]) -> EditRequest:
    """A request from the fields that are stored of it; see `stored_request`."""
    fields = {name: _tuples(value) for name, value in stored.items()}
    if "form" in fields:
        fields["form"] = Form(*fields["form"])
    return EditRequest(**{"case_id": "", "prompt": "", "subject": "", "target_new": "", **fields})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _tensor_files(folder: Path) -> list[Path]:
    return [path for path in (folder / TENSOR_FOLDER).glob("batch-*.safetensors") if _TENSOR_FILE.fullmatch(path.name)]


def _line(value: Mapping[str, Any]) -> str:
    # ASCII, so that no kind of line break inside a text can end the line.
    return json.dumps(value, separators=(",", ":")) + "\n"


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}, line {number} is not JSON ({error}): the log was altered or damaged.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}, line {number} is not an object: the log was altered or damaged.")
    return value


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
            raise UserError(f"{path}, line {place + 1} is out of order: the log was altered or damaged.")


Kept = Literal["all", "changes", "none"]
