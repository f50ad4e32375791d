"""UniEdit (Chen et al. 2025): edits of 25 domains, what follows from each, and what must stay, in one form."""

from collections.abc import Iterator
from typing import NamedTuple

from sphere_pl.data.records import Record
from sphere_pl.data.request import EditRequest
from sphere_pl.data.subject import mark_subject

_SAME_FACT = ["h_e", "r_e", "t_e", "f"]  # a path of one hop, the edited fact itself: the question is a rephrasing
_YES_OR_NO = " The answer is (Yes/No):"  # how the authors ask whether two paths lead to the same entity


class _Question(NamedTuple):
    prompt: str
    answer: str
    rephrases: bool


def read_uniedit(record: Record) -> list[EditRequest]:
    """Read `edit` with the questions of `generality` and `locality`.

    Questions that ask for the edited fact in other words are paraphrases, all others of `generality` its portability.
    A file holds its records under their numbers, which are the case ids.
    """
    edit = record.inner("edit", 0, record.get("edit", dict))
    if "subject" not in edit.fields and "subject_id" in edit.fields:
        raise edit.error(
            "the subject has an identifier but no name, as in RippleEdits' own files. KnowEdit has the same facts with "
            "names (WikiData_counterfact and WikiData_recent), which are read."
        )
    subject, target = edit.filled("subject"), edit.get("target")
    general, local = list(_questions(record, "generality")), list(_questions(record, "locality"))
    follow = [each for each in general if not (each.rephrases and each.answer.strip() == target.strip())]
    request = EditRequest(
        case_id=record.key or str(record.number),
        prompt=mark_subject(edit.get("prompt"), subject),
        subject=subject,
        target_new=target,
        paraphrases=tuple(each.prompt for each in general if each not in follow),
        neighbors=tuple(each.prompt for each in local),
        neighbor_answers=tuple(each.answer for each in local),
        source=record.where,
        portability=tuple(each.prompt for each in follow),
        portability_answers=tuple((each.answer,) for each in follow),
    )
    return [request]


def _questions(record: Record, name: str) -> Iterator[_Question]:
    """The questions below a field, under their numbers or in a list; those without prompt or answer left out."""
    value = record.optional(name, (dict, list)) or {}
    entries = value.values() if isinstance(value, dict) else value
    for index, fields in enumerate(entries):
        if fields is None:  # the hub fills in the numbers that a record lacks
            continue
        entry = record.inner(name, index, fields)
        prompt, answer = entry.optional("prompt"), entry.optional("target")
        double = entry.optional("path_type") == "double"
        if prompt and prompt.strip() and answer and answer.strip():
            paths = entry.optional("paths", list) or []
            rephrases = not double and len(paths) == 1 and isinstance(paths[0], list) and paths[0][:4] == _SAME_FACT
            yield _Question(prompt.rstrip() + _YES_OR_NO if double else prompt, answer, rephrases)
