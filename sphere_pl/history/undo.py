"""A run without some of its edits, as a run folder of its own: its batches solved again, logged as they are now.

What is exact about it and what is approximated is what `replay` says. The new folder can be exported, scored, continued
and undone again like any other; its log begins with the batches of the old one, without the rows of the edits that were
taken back, and its header names these.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sphere_pl.history.continuation import KEPT, chain_of
from sphere_pl.history.entries import Entry, Header, sums_of
from sphere_pl.history.left_out import kept_rows
from sphere_pl.history.log import EditHistory, append_entry, now, pack, unpack, write_log, write_tensors
from sphere_pl.history.low_rank import ROUNDING, Change, compress, rank_of
from sphere_pl.history.replay import Replay
from sphere_pl.history.saved import BaseModel, SavedRun
from sphere_pl.storage.checkpoint_file import read_checkpoint, write_checkpoint


class Undone(NamedTuple):
    """What is left of a run.

    Attributes:
        history: The log of the new folder.
        weights: The matrices with which editing would continue, float32 `[d_out, d_in]`, by name.
    """

    history: EditHistory
    weights: dict[str, Tensor]


def is_exact(history: EditHistory, cases: Sequence[str]) -> bool:
    """Whether the result is that of a run that had never been asked for these edits.

    So it is if the edits are in a list and in no weight, or if nothing was measured on weights that held them: if whole
    batches go from the end, or if rows of the last batch go and one matrix is edited.
    """
    if history.header.retrieval is not None:
        return True
    batches = [set(entry.case_ids) for entry in history.entries if entry.requests]
    first = next(number for number, batch in enumerate(batches) if batch & set(cases))
    whole = set().union(*batches[first:]) <= set(cases)
    return whole or (first == len(batches) - 1 and len(history.header.matrices) == 1)


def write_without(folder: Path, run: SavedRun, base: BaseModel, cases: Sequence[str]) -> Undone:
    """Write the log of a run without some cases, and what the run left for the next one.

    Args:
        folder: An empty folder.
        run: The run.
        base: Its unedited model, as loaded.
        cases: Their ids.

    Raises:
        UserError: If the run cannot be solved again.
    """
    replay = Replay(run, base, len(run.history.entries))
    history = write_log(folder, run.history.header)
    weights = {name: weight.clone() for name, weight in base.weights.items()}
    further = {entry.number for entry in run.history.stream(replay.last)}
    for entry, matrices in replay.without(frozenset(cases)):
        after, edits = matrices.copy(), history.edits
        kept = _log(folder, entry, _tensors(run, entry, weights, after, frozenset(cases)), frozenset(cases))
        edits += len(kept.requests) if entry.number in further else 0
        kept = replace(kept, edits=edits, sums=sums_of(after))
        append_entry(folder, kept)
        history.entries.append(kept)
        weights = after
    history = write_log(folder, _header(run, history, cases), history.entries)
    _hand_on(folder, run, replay, weights)
    if (run.folder / "config.yaml").is_file():
        shutil.copyfile(run.folder / "config.yaml", folder / "config.yaml")
    return Undone(history, weights)


def _tensors(
    run: SavedRun, entry: Entry, before: Mapping[str, Tensor], after: Mapping[str, Tensor], left_out: frozenset[str]
) -> dict[str, Tensor]:
    """What the log keeps of a batch: its changes, and the rows of what the method solved that are left."""
    rows = kept_rows(entry, left_out)
    if entry.base != entry.number - 1 or not len(rows):
        return {}
    tensors = run.history.tensors(entry)
    changes: dict[str, Change | None] = dict.fromkeys(before)
    if any(unpack(tensors, name) is not None for name in before):
        for name, weight in after.items():
            noise = ROUNDING * float(torch.linalg.matrix_norm(weight))
            changes[name] = compress(weight - before[name], len(rows), noise)
    systems: dict[str, dict[str, Tensor]] = {name: {} for name in before}
    for kind in ("keys", "residuals", "remembered"):
        for name in before:
            if f"{kind}/{name}" in tensors:
                systems[name][kind] = tensors[f"{kind}/{name}"][rows]
    return pack(changes, systems)


def _log(folder: Path, entry: Entry, tensors: dict[str, Tensor], left_out: frozenset[str]) -> Entry:
    requests = [request for request in entry.requests if request["case_id"] not in left_out]
    names = [name.partition("/")[2] for name in tensors if name.startswith(("left/", "full/"))]
    ranks = {name: rank_of(change) for name in names if (change := unpack(tensors, name)) is not None}
    file, sha256 = write_tensors(folder, entry.number, tensors) if tensors else (None, None)
    return replace(entry, requests=requests, file=file, sha256=sha256, ranks=ranks)


def _header(run: SavedRun, history: EditHistory, cases: Sequence[str]) -> Header:
    """The old header with the run among the ancestors, whose edits are counted again, and what was taken back."""
    old, chain = run.history.header, chain_of(run)
    counted = [replace(each, edits=history.entries[each.entries - 1].edits) for each in chain if each.entries]
    gone = [
        {**request, "from": chain[-1].run_dir, "at": now()}
        for request in run.history.stored_requests(len(run.history.entries))
        if request["case_id"] in cases
    ]
    return replace(old, ancestors=counted, removed=[*old.removed, *gone])


def _hand_on(folder: Path, run: SavedRun, replay: Replay, weights: Mapping[str, Tensor]) -> None:
    """Leave for the next run what this one had left, as far as it does not hold the edits that were taken back."""
    path = run.folder / KEPT
    kept: dict[str, Any] = dict(read_checkpoint(path)) if path.is_file() else {}
    kept = {name: kept[name] for name in ("settings", "random", "max_tokens") if name in kept}
    kept["callbacks"] = {each.state_key: state for each in replay.callbacks if (state := each.state_dict())}
    if run.history.header.restraint is not None:
        kept["live"] = dict(weights)
    write_checkpoint(kept, folder / KEPT)
