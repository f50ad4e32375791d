"""What a run takes over from the finished run that it continues: its log, its weights, and the memory of its keys."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sphere_callbacks.functional import exact_products
from sphere_pl.data.request import EditRequest, shorten
from sphere_pl.editing.states import MethodStates
from sphere_pl.errors import UserError
from sphere_pl.history.by_hand import SESSION
from sphere_pl.history.entries import Ancestor, Entry, request_of, sums_of
from sphere_pl.history.left_out import kept_rows
from sphere_pl.history.log import LOG_FILE, EditHistory, log_digest, read_log
from sphere_pl.history.rebuild import rebuild
from sphere_pl.history.recipes import same_recipe
from sphere_pl.history.saved import EDITED, RESULTS, SavedRun
from sphere_pl.methods.base import Method, State
from sphere_pl.methods.problem import KnownProblem
from sphere_pl.methods.retrieval import Retrieval
from sphere_pl.storage.checkpoint_file import read_checkpoint
from sphere_pl.text.names import resume_command

log = logging.getLogger(__name__)
KEPT = "continue.safetensors"


@dataclass(frozen=True)
class Earlier:
    """The edits that a run finds in its model.

    Attributes:
        name: The run that made them, for messages.
        requests: The edits, in their order.
        fingerprint: Hash of the unedited model; empty if that is not in doubt.
        weights: The matrices that editing continues with, float32 `[d_out, d_in]`; None if they are to be rebuilt.
        kept: What the run left for the next one: random states, the callbacks' states and so on.
        history: Its log; None if it wrote none.
        ancestors: The runs of the chain, that one last.
    """

    name: str
    requests: list[EditRequest]
    fingerprint: str = ""
    weights: dict[str, Tensor] | None = None
    kept: dict[str, Any] = field(default_factory=dict)
    history: EditHistory | None = None
    ancestors: list[Ancestor] = field(default_factory=list)

    def check_base(
        self, fingerprint: str, matrices: Iterable[str], model: str, retrieval: Retrieval | None = None
    ) -> None:
        """Refuse another model, other layers, or another kind of method than the edits are in.

        Raises:
            UserError: If they differ.
        """
        if self.history is None:
            return
        header = self.history.header
        if fingerprint != self.fingerprint:
            raise UserError(
                f"{model} is not the unedited model of {self.name} ({header.model}, {header.dtype}): their weights "
                "differ. A run continues on its own base model, in its own dtype; leave --model.name and "
                "--model.dtype out, or name the place to which that model has moved."
            )
        if (retrieval is None) != (header.retrieval is None):
            raise UserError(
                f"{self.name} was edited with {header.method}: a run whose facts stand in a list (SCR) and one that "
                "edits weights do not continue each other. Edit all facts in one run, with one of them."
            )
        logged = [matrix.name for matrix in header.matrices]
        if list(matrices) != logged:
            raise UserError(
                f"{self.name} edits the layers {header.layers}, and a run that continues it does so too. Leave "
                "--model.layers out, or edit other layers in a run of their own on an export of this one."
            )

    @torch.no_grad()
    def live_weights(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The matrices that editing continues with.

        Args:
            base: The unedited ones, float32 `[d_out, d_in]`, by name.
        """
        if self.weights is not None:
            return self.weights
        if self.history is None:
            return dict(base)
        return rebuild({name: weight.cpu() for name, weight in base.items()}, self.history, len(self.history.entries))

    @torch.no_grad()
    def restore_memory(self, method: Method, states: MethodStates, weights: Sequence[Tensor]) -> None:
        """Let the method remember the earlier edits.

        Raises:
            UserError: If neither the log nor what the run left holds what the method remembers.
        """
        if not method.saved:
            return
        memory = self.kept.get("memory")
        if memory is not None and memory["method"] == method.name:
            states.restore(memory["states"])
        elif self.history is not None:
            remember_logged(self.history, method, states, weights)


def remember_logged(
    history: EditHistory,
    method: Method,
    states: MethodStates,
    weights: Sequence[Tensor],
    left_out: frozenset[str] = frozenset(),
    last: int | None = None,
) -> None:
    """Let a method remember the keys of the first `last` entries of a log, all of them if None, but for some cases.

    Keys that an earlier method did not remember are those that it solved for, measured just before the batch.

    Raises:
        UserError: If the log does not hold them.
    """
    names = [matrix.name for matrix in history.header.matrices]
    with exact_products():
        for entry in history.entries[:last]:
            rows = kept_rows(entry, left_out)
            tensors = history.tensors(entry) if len(rows) else {}
            for layer, name in enumerate(names):
                keys = _keys_of(tensors, name, entry, history, method)
                if keys is not None:
                    device = weights[layer].device
                    # Indexed, and so copied: rounding can depend on where in memory a tensor begins.
                    known = (keys[rows].to(device), tensors[f"residuals/{name}"][rows].to(device))
                    states.update(layer, partial(method.remember, KnownProblem(*known)))


def _keys_of(
    tensors: Mapping[str, Tensor], name: str, entry: Entry, history: EditHistory, method: Method
) -> Tensor | None:
    keys = tensors.get(f"remembered/{name}", tensors.get(f"keys/{name}"))
    if keys is None and tensors:
        raise UserError(
            f"{method.name} remembers the keys of earlier edits, and the log of {history.folder} does not hold those "
            f"of batch {entry.number}: the run had --edit_log changes, or a method that solves for no keys. Continue "
            "with the method of that run, or edit all facts in one run."
        )
    return keys


def open_earlier(folder: Path, option: str = "--from") -> Earlier:
    """Read a finished run that another one shall continue, and make sure that it is as it was left.

    Args:
        folder: Its folder.
        option: What named it, for messages.

    Raises:
        UserError: If it is no run folder, the run did not come to its end, or a file does not have its checksum.
    """
    if not folder.is_dir():
        raise UserError(
            f"{option}={folder} is no folder. Give the run folder of a finished run; was it deleted or moved?"
        )
    run = SavedRun.open(folder)
    _check_finished(run)
    for entry in run.history.entries:
        run.history.tensors(entry)  # their checksums
    kept = read_checkpoint(folder / KEPT) if (folder / KEPT).is_file() else {}
    weights = kept.get("live")
    if (folder / EDITED).is_file():
        final = run.final()
        weights = final if weights is None and run.history.header.restraint is None else weights
    else:
        log.warning("%s is missing: the weights are rebuilt from the log, up to float32 rounding.", folder / EDITED)
    if weights is not None and run.history.entries and not run.history.entries[-1].is_state(sums_of(weights)):
        raise UserError(
            f"The weights in {folder / (KEPT if 'live' in kept else EDITED)} are not those that its {LOG_FILE} ends "
            "with: the folder was changed. Restore it from a copy."
        )
    return earlier_of(run, weights, kept)


def earlier_of(run: SavedRun, weights: dict[str, Tensor] | None, kept: dict[str, Any]) -> Earlier:
    """The edits of a run that is known to be as it was left.

    Args:
        run: The run.
        weights: The matrices that editing continues with; None if they are to be rebuilt.
        kept: What it left for the next one.
    """
    requests, header = run.history.requests, run.history.header
    return Earlier(str(run.folder), requests, header.fingerprint, weights, kept, run.history, chain_of(run))


def warn_of_returning(earlier: Earlier, requests: Sequence[EditRequest]) -> None:
    """Say which facts are edited again that were taken back before."""
    header = None if earlier.history is None else earlier.history.header
    removed = {(each["prompt"], each["subject"], each["target_new"]) for each in header.removed} if header else set()
    again = [each for each in requests if (each.prompt, each.subject, each.target_new) in removed]
    if again:
        log.warning(
            "%s of the facts to add had been taken back in %s, and %s edited again. The first: %s -> %s. Leave out "
            "what shall stay taken back.",
            f"{len(again):,}",
            earlier.name,
            "is" if len(again) == 1 else "are",
            shorten(again[0].question),
            shorten(again[0].target_new),
        )


def inherited_requests(folder: Path, parent: Path) -> list[EditRequest]:
    """The edits that a run which is resumed had found: by its own log, or by that of the run that it continues.

    Raises:
        UserError: If neither is there.
    """
    if (folder / LOG_FILE).is_file():
        history = read_log(folder)
        if history.header.ancestors:
            return [request_of(stored) for stored in history.stored_requests(history.header.inherited)]
    return open_earlier(parent).requests


def chain_of(run: SavedRun) -> list[Ancestor]:
    """The runs of a chain that ends with this one, as the log of a later run has them.

    The runs that an editing session makes, one for each edit, are one as long as they edit in one way.
    """
    before, own = list(run.history.header.ancestors), _ancestor(run)
    last = before[-1] if before and run.folder.parent.name == SESSION else None
    if last is not None and last.run_dir == own.run_dir and same_recipe(last.recipe, own.recipe):
        before.pop()
    return [*before, own]


def _ancestor(run: SavedRun) -> Ancestor:
    entries, scores = run.history.entries, run.results.get("after")
    in_session = run.folder.parent.name == SESSION  # a state, which is gone when the next one is there
    return Ancestor(
        str(run.folder.parent if in_session else run.folder),
        len(entries),
        run.history.edits,
        entries[-1].time if entries else "",
        scores if isinstance(scores, dict) else {},
        run.recipe,
    )


def _check_finished(run: SavedRun) -> None:
    results = run.results
    if not results:
        raise UserError(
            f"The run in {run.folder} has not come to its end: there is no {RESULTS}. Resume it first: "
            f"{resume_command(run.folder)}."
        )
    digest = results.get("edit_log_sha256")
    if results.get("edits") != run.history.edits or digest not in (None, log_digest(run.folder)):
        raise UserError(
            f"{run.folder / LOG_FILE} is not the log that the run ended with, as {RESULTS} knows it: it was changed. "
            "Restore it from a copy."
        )


def memory_to_keep(method: Method, states: MethodStates, solvable: bool) -> dict[str, Any] | None:
    """The memory of a method, if no log of keys can give it back."""
    if not method.saved or (solvable and method.needs_targets):
        return None
    saved: list[State] = states.saved(method.saved)
    return {"method": method.name, "states": saved}
