"""What the edit log says: of the run, of each change of the weights, and of the requests that it was made for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sphere_pl.data.request import EditRequest, Form

FORMAT = 1


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
        fingerprint: Hash of the unedited model in that type; see `model.fingerprint`.
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
