"""What a file of edits holds that a run would stumble over, found without a model."""

import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from sphere_pl.data.request import EditRequest
from sphere_pl.data.review import contradicted

_ALONE = ("LATIN", "GREEK", "CYRILLIC")  # scripts of languages that write particles as words


class Survey(NamedTuple):
    """What stands out among some edits; each is a list of places in the stream, or of groups of them.

    Attributes:
        repeated: Groups of edits that ask for the same thing with the same target.
        contradicted: Edits that a later one contradicts, each with the place of that one.
        together: Those of them that share a batch with the edit that contradicts them.
        shared: Groups of edits whose prompts are the same up to the end of the subject: one key, and several values.
        alike: Groups of other edits of one subject, whose keys are nearly equal.
        bare: Edits without a subject.
        inside: Edits whose subject stands inside a longer word of their prompt.
    """

    repeated: list[list[int]]
    contradicted: dict[int, int]
    together: list[int]
    shared: list[list[int]]
    alike: list[list[int]]
    bare: list[int]
    inside: list[int]


def survey(requests: Sequence[EditRequest], batch_size: int) -> Survey:
    """Look at a stream of edits.

    Example:
        >>> one, two = EditRequest("0", "{} is in", "Rome", "Spain"), EditRequest("1", "{} was", "Rome", "old")
        >>> survey([one, two], 10).shared
        [[0, 1]]
    """
    later = contradicted(requests)
    about = [each for each in range(len(requests)) if requests[each].subject]
    beginning = {each: requests[each].question[: requests[each].subject_end] for each in about}
    shared = _groups({each: beginning[each] for each in about})
    # An edit that is repeated or contradicted has no second value of its own for the key.
    shared = [group for group in shared if len({requests[each].question for each in group}) > 1]
    taken = {each for group in shared for each in group}
    alike = _groups({each: requests[each].subject.casefold() for each in about if each not in taken})
    same = {place: (each.question.casefold(), each.target_new.casefold()) for place, each in enumerate(requests)}
    return Survey(
        _groups(same),
        later,
        [each for each, by in later.items() if each // batch_size == by // batch_size],
        shared,
        [group for group in alike if len({beginning[each] for each in group}) > 1],
        [each for each, request in enumerate(requests) if not request.subject],
        [each for each in about if _is_inside(requests[each])],
    )


def _is_inside(request: EditRequest) -> bool:
    """Whether letters of a script with spaces go on directly before the subject, or after it, as in Rome of Romeo.

    A suffix that begins with an apostrophe or a hyphen is none of them. Only scripts whose words stand alone are looked
    at: in Korean and many others a particle is written to every name.
    """
    start, end = request.subject_span
    text, subject = request.question, request.subject
    borders = ((text[max(start - 1, 0) : start], subject[0]), (subject[-1], text[end : end + 1]))
    return any(_go_on(before, after) for before, after in borders)


def _go_on(before: str, after: str) -> bool:
    return all(each.isalpha() and unicodedata.name(each, "").startswith(_ALONE) for each in (before, after))


def _groups(labels: dict[int, Any]) -> list[list[int]]:
    """Places with the same label, where there are at least two."""
    found: defaultdict[Hashable, list[int]] = defaultdict(list)
    for place, label in labels.items():
        found[label].append(place)
    return [group for group in found.values() if len(group) > 1]
