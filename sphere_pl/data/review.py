"""What a careful reader would notice in a stream of edits: conflicts, repeated ids, neighbours that are edited too."""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

from sphere_pl.data.request import EditBatch, EditRequest, shorten
from sphere_pl.errors import UserError
from sphere_pl.text.numbers import counted
from sphere_pl.text.scripts import is_spaceless

log = logging.getLogger(__name__)

# A word, or a character of the scripts without spaces.
_SPACELESS = "\u0e00-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_SPACELESS}]|[^\W{_SPACELESS}]+")
Conflicts = Literal["ask", "report", "refuse", "keep_last"]


def settle_conflicts(requests: Sequence[EditRequest], conflicts: Conflicts = "report") -> list[EditRequest]:
    """Find edits that contradict an earlier one: same subject and relation, or same question, and another target.

    Args:
        requests: The stream, in its order.
        conflicts: `report` and `ask` log a warning, `refuse` raises, `keep_last` logs it and drops what a later edit
            overrides.

    Returns:
        The stream, without the overridden edits if so wished.

    Raises:
        UserError: If there are conflicts and they are refused.
    """
    overridden = contradicted(requests)
    if not overridden:
        return list(requests)
    first, later = next((requests[index], requests[by]) for index, by in overridden.items())
    of = f"of {counted(len(requests), 'edit')}"
    found = (
        f"{counted(len(overridden), f'{of} is', f'{of} are')} contradicted by a later one about the same "
        f"subject and relation. The first: {_place(first)} says {shorten(first.question)} -> "
        f"{shorten(first.target_new)}, {_place(later)} says {shorten(later.question)} -> {shorten(later.target_new)}."
    )
    if conflicts == "refuse":
        raise UserError(f"{found} Correct the data, or choose --data.conflicts=keep_last or report.")
    if conflicts == "keep_last":
        log.warning("%s The overridden edits are left out.", found)
        return [request for index, request in enumerate(requests) if index not in overridden]
    log.warning("%s All are edited in order; --data.conflicts=keep_last leaves the overridden ones out.", found)
    return list(requests)


def refuse_contradictions(batches: Iterable[EditBatch]) -> None:
    """Refuse two edits in one batch that contradict each other: solved together, neither would hold.

    Raises:
        UserError: Naming both records.
    """
    for batch in batches:
        for index, by in contradicted(batch.requests).items():
            first, later = batch.requests[index], batch.requests[by]
            raise UserError(
                f"Two edits of one batch contradict each other: {_place(first)} says {shorten(first.question)} -> "
                f"{shorten(first.target_new)}, {_place(later)} says {shorten(later.question)} -> "
                f"{shorten(later.target_new)}. Remove one of them, or say what is meant: --data.conflicts=keep_last "
                "drops the earlier one, report edits both together, --data.batch_size=1 edits the later one afterwards."
            )


def contradicted(requests: Sequence[EditRequest]) -> dict[int, int]:
    """Places of the edits that a later one contradicts, each with the place of the last edit that does so."""
    last: dict[Hashable, int] = {key: index for index, request in enumerate(requests) for key in _keys(request)}
    overridden = {}
    for index, request in enumerate(requests):
        for key in _keys(request):
            if _target(requests[last[key]]) != _target(request):
                overridden[index] = last[key]
    return overridden


def contradicts(one: EditRequest, other: EditRequest) -> bool:
    """Whether two requests want different answers to the same question, or for the same subject and relation."""
    return bool(set(_keys(one)) & set(_keys(other))) and _target(one) != _target(other)


def _keys(request: EditRequest) -> Iterator[Hashable]:
    yield request.question.casefold()
    if request.relation_id is not None and request.subject:
        yield request.subject.casefold(), request.relation_id


def _target(request: EditRequest) -> str:
    return request.target_new.casefold()


def _place(request: EditRequest) -> str:
    return request.source or f"case {request.case_id}"


def report_repeated_ids(requests: Sequence[EditRequest]) -> int:
    """Warn of case ids that several records have; they stay apart all the same, by their place in the stream.

    Returns:
        How many ids are repeated.
    """
    repeated = {case_id: count for case_id, count in Counter(r.case_id for r in requests).items() if count > 1}
    if repeated:
        case_id, count = next(iter(repeated.items()))
        log.warning(
            "%s more than once, the first is %s (%d times). Each is edited and scored for itself.",
            counted(len(repeated), "case id occurs", "case ids occur"),
            shorten(case_id),
            count,
        )
    return len(repeated)


def unlike(requests: Sequence[EditRequest], taken: Sequence[str]) -> list[EditRequest]:
    """Give requests whose case id an earlier run has used the number of their place after those of that run.

    Ids that are no more than places in the data are changed without a word.

    Example:
        >>> new = [EditRequest("0", "{} is", "Oslo", "big"), EditRequest("x", "{} is", "Rome", "small")]
        >>> [request.case_id for request in unlike(new, taken=["0", "1"])]
        ['2', 'x']
    """
    used = set(taken)
    reserved = used | {request.case_id for request in requests}
    found, changed = [], []
    for place, request in enumerate(requests):
        case_id = request.case_id
        if case_id in used:
            number = len(taken) + place
            while str(number) in reserved:
                number += 1
            reserved.add(str(number))
            changed += [] if case_id == str(place) else [f"{shorten(case_id)} is {number} now"]
            case_id = str(number)
        found.append(request._replace(case_id=case_id))
    if changed:
        taken_ids = counted(len(changed), "case id belongs to an edit", "case ids belong to edits")
        log.warning("%s of earlier runs: %s.", taken_ids, ", ".join(changed[:5]))
    return found


def report_edited_neighbors(requests: Sequence[EditRequest]) -> int:
    """Warn of neighbours that an edit changes on purpose, which makes specificity look worse than it is.

    Such a neighbour is the edit's own question, or holds the name of another edit's subject.

    Returns:
        How many neighbours, over all requests.
    """
    subjects = _by_first_word({request.subject for request in requests})
    clashes = sum(
        neighbor.strip() == request.question or bool(_mentioned(neighbor, subjects) - {request.subject})
        for request in requests
        for neighbor in request.neighbors
    )
    if clashes:
        of = f"of {counted(sum(len(request.neighbors) for request in requests), 'neighbour prompt')}"
        log.warning(
            "%s the name of another edit's subject: such answers may change for good reason.",
            counted(
                clashes, f"{of} is its edit's own question or holds", f"{of} are their edit's own question or hold"
            ),
        )
    return clashes


def _by_first_word(subjects: set[str]) -> Mapping[str, list[tuple[int, str]]]:
    """Subjects by their first word, with the place of that word in them."""
    index: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    for subject in sorted(subjects):
        word = _WORD.search(subject)
        if word is not None:
            index[word.group()].append((word.start(), subject))
    return index


def _mentioned(text: str, subjects: Mapping[str, list[tuple[int, str]]]) -> set[str]:
    """The subjects that stand in a text as whole words."""
    return {
        subject
        for word in _WORD.finditer(text)
        for offset, subject in subjects.get(word.group(), ())
        if word.start() >= offset
        and text.startswith(subject, word.start() - offset)
        and (is_spaceless(subject[-1]) or not re.match(r"\w", text[word.start() - offset + len(subject) :][:1]))
    }
