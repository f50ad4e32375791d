"""Which edits of a run are left out where its batches are solved again, and whether they can be."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from sphere_pl.data.request import EditRequest, shorten
from sphere_pl.errors import UserError
from sphere_pl.history.entries import Entry, request_of
from sphere_pl.history.log import EditHistory
from sphere_pl.history.saved import SavedRun
from sphere_pl.text.usage import did_you_mean


def check_without(run: SavedRun, names: Collection[str], last: int) -> list[str]:
    """Refuse edits that cannot be left out, before anything is loaded; returns the case ids that are meant.

    Raises:
        UserError: If a case is unknown, the method has no keys and residuals, or the log lacks them.
    """
    _check_solvable(run)
    return find_cases(run.history, names, last)


def find_cases(history: EditHistory, names: Collection[str], last: int) -> list[str]:
    """The case ids that are named, by themselves or by the subjects of their facts.

    Raises:
        UserError: If a name is neither among the first `last` entries.
    """
    requests = [request_of(stored) for stored in history.stored_requests(last)]
    by_id = {request.case_id for request in requests}
    by_subject: dict[str, list[str]] = {}
    for request in requests:
        by_subject.setdefault(request.subject.casefold(), []).append(request.case_id)
    found: dict[str, None] = {}
    for name in names:
        cases = [name] if name in by_id else by_subject.get(name.casefold(), [])
        if not cases:
            raise UserError(_no_such_edit(name, history, requests))
        found |= dict.fromkeys(cases)
    return list(found)


def _no_such_edit(name: str, history: EditHistory, requests: Sequence[EditRequest]) -> str:
    known = [each for request in requests for each in (request.case_id, request.subject)]
    listed = ", ".join(f"{each.case_id} ({each.subject[:30]})" for each in requests[:10])
    meant = did_you_mean(name, known)
    return (
        f"{shorten(name)}: no edit of {history.folder} has this case id or subject. "
        f"{meant or f'Its first are {listed}.'}"
    )


def _check_solvable(run: SavedRun) -> None:
    header = run.history.header
    if not header.solvable:
        raise unsolvable(run)
    for entry in run.history.entries:
        if not entry.requests and (entry.file is not None or not entry.complete):
            raise UserError(
                f"The weights of {run.folder} were changed between batches (entry {entry.number} of its log): what "
                "the batches after it would have given without the edits cannot be solved. Run `fit` again on data "
                "without them."
            )


def unsolvable(run: SavedRun) -> UserError:
    """What to say of a run that logged nothing to solve again."""
    return UserError(
        f"{run.folder} was edited with {run.history.header.method}, and its log holds no keys and residuals to solve "
        "again: either the method optimises the weights on each whole batch (FT, LocFT-BF, UltraEdit), or the run had "
        "--edit_log changes. Export the state before the edit with --at, or run `fit` again on data without it."
    )


def kept_rows(entry: Entry, left_out: frozenset[str]) -> Tensor:
    """Which rows of a batch stay, `int64 [rows]`."""
    return torch.tensor([i for i, case in enumerate(entry.case_ids) if case not in left_out], dtype=torch.long)
