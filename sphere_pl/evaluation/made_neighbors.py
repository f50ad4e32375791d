"""Neighbours for records that give none: their own prompt with other subjects, to see what an edit moves besides.

Their right answers are not known, so they count for the agreement with the unedited model alone.
"""

import json
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sphere_pl.data.builtin import facts_path
from sphere_pl.data.request import EditRequest


class Made(NamedTuple):
    """How many neighbours were made.

    Attributes:
        records: Records that gave none and have made ones now.
        prompts: The made neighbours of all of them.
        total: All records.
    """

    records: int
    prompts: int
    total: int

    def line(self) -> str:
        """One line for people; nothing if none was made.

        Example:
            >>> Made(3, 6, 4).line()[:75]
            'Side effects: 3 of 4 records give no neighbors; agreement with the unedited'
        """
        if not self.records:
            return ""
        return (
            f"Side effects: {self.records:,} of {self.total:,} records give no neighbors; agreement with the unedited "
            f"model is measured on {self.prompts:,} made ones, their prompts with other subjects "
            "(--model.evaluation.made_neighbors=0: not)."
        )


def with_made_neighbors(requests: Sequence[EditRequest], size: int, seed: int) -> list[EditRequest]:
    """Give every request that has no neighbours its prompt with other subjects as such.

    The subjects are those of the other requests, then of the built-in facts, whose look is nearest; a prompt that is
    edited itself, as another request's or as a paraphrase, is none. Which ones are drawn depends on the request and
    the seed, not on its place.

    Args:
        requests: The stream.
        size: How many neighbours to make for each; 0 leaves the requests as they are.
        seed: Draws the subjects.
    """
    if not size or all(request.neighbors for request in requests):
        return list(requests)
    edited = {text.strip().casefold() for each in requests for text in (each.question, *each.paraphrases)}
    own, known = list(dict.fromkeys(each.subject for each in requests)), _known_subjects()

    def made(request: EditRequest) -> tuple[str, ...]:
        draw = random.Random(f"{seed} {request.question}")  # noqa: S311 (a sample, not a secret)
        subjects = [*_nearest(request, own, draw)[: (size + 1) // 2], *_nearest(request, known, draw)]
        return tuple(dict.fromkeys(_questions(request, subjects, edited)))[:size]

    return [each if each.neighbors else each._replace(neighbors=made(each)) for each in requests]


def made_of(given: Sequence[EditRequest], completed: Sequence[EditRequest]) -> Made:
    """How many neighbours `with_made_neighbors` has made."""
    counts = [len(new.neighbors) for old, new in zip(given, completed, strict=True) if not old.neighbors]
    return Made(sum(count > 0 for count in counts), sum(counts), len(given))


def _questions(request: EditRequest, subjects: Sequence[str], edited: set[str]) -> Iterator[str]:
    """The request's prompt with each subject, unless that is edited itself."""
    own = request.subject.casefold()
    for subject in subjects:
        text = request.prompt.replace("{}", subject, 1)
        if subject.casefold() not in own and own not in subject.casefold() and text.strip().casefold() not in edited:
            yield text


def _nearest(request: EditRequest, subjects: Sequence[str], draw: random.Random) -> list[str]:
    """Subjects in random order, those with as many words, begun as the request's own, first."""
    words, begun = len(request.subject.split()), request.subject[:1].isupper()
    shuffled = draw.sample(subjects, len(subjects)) if len(subjects) < 2000 else draw.sample(subjects, 2000)
    return sorted(shuffled, key=lambda each: (abs(len(each.split()) - words), each[:1].isupper() != begun))


def _known_subjects() -> list[str]:
    records = json.loads(facts_path().read_text(encoding="utf-8"))
    return list(dict.fromkeys(record["requested_rewrite"]["subject"] for record in records))
