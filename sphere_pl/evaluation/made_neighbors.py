"""Neighbours for records that give none: their own prompt with other subjects, to see what an edit moves besides.

Their right answers are not known, so they count for the agreement with the unedited model alone.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from sphere_pl.data.builtin import facts_path
from sphere_pl.data.request import EditRequest
from sphere_pl.evaluation.sample import fixed_sample
from sphere_pl.evaluation.scoring import Answer, answer
from sphere_pl.model.generation import complete
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.tokens import Prompt
from sphere_pl.text.joining import asked
from sphere_pl.text.numbers import counted

MOST = 100  # records that neighbours are made for
WORDS = 8  # tokens of the unedited model's answer that the edited one is compared by


class MadeNeighbor(NamedTuple):
    """A made neighbour, and what the unedited model says to it.

    Attributes:
        prompt: The prompt.
        answer: The beginning of what the unedited model writes.
        predicted: The tokens that it finds likeliest at the places of these words.
        joiner: What stands between prompt and answer, where the record says so.
    """

    prompt: str
    answer: str
    predicted: list[int]
    joiner: str | None = None


class Made(NamedTuple):
    """How many neighbours were made.

    Attributes:
        records: Records that have made ones.
        prompts: The made neighbours of all of them.
        without: Records that give none.
        total: All records.
    """

    records: int
    prompts: int
    without: int
    total: int

    def line(self) -> str:
        """One line for people; nothing if none was made.

        Example:
            >>> Made(3, 6, 3, 4).line()[:58]
            'Side effects: 3 of 4 records give no neighbors; agreement '
        """
        if not self.records:
            return ""
        few = f" for {self.records:,} of them" if self.records < self.without else ""
        return (
            f"Side effects: {self.without:,} of {self.total:,} records give no neighbors; agreement with the unedited "
            f"model is measured on {counted(self.prompts, 'made one')}{few}, their prompts with other subjects "
            "(--model.evaluation.made_neighbors=0: not)."
        )


def made_prompts(requests: Sequence[EditRequest], size: int, seed: int) -> dict[int, list[str]]:
    """Prompts to see side effects by, for requests that give no neighbours: their own with other subjects.

    The subjects are those of the other requests, then of the built-in facts, whose look is nearest; a prompt that is
    edited itself, as another request's or as a paraphrase, is none.

    Args:
        requests: The stream.
        size: How many to make for each request; 0 makes none.
        seed: Draws the subjects, and the requests if there are more than `MOST`.

    Returns:
        The prompts of each such request, by its place.
    """
    without = [place for place, request in enumerate(requests) if not request.neighbors]
    if not size or not without:
        return {}
    edited = {text.strip().casefold() for each in requests for text in (each.question, *each.paraphrases)}
    own, known = list(dict.fromkeys(each.subject for each in requests)), _known_subjects()

    def made(request: EditRequest) -> list[str]:
        draw = random.Random(f"{seed} {request.question}")  # noqa: S311 (a sample, not a secret)
        others = list(_questions(request, _nearest(request, own, draw), edited))[: (size + 1) // 2]
        prompts = dict.fromkeys([*others, *_questions(request, _nearest(request, known, draw), edited)])
        return list(prompts)[:size]

    chosen = [without[index] for index in fixed_sample(len(without), MOST, seed)]
    return {place: made(requests[place]) for place in chosen}


def count_made(requests: Sequence[EditRequest], size: int, seed: int) -> Made:
    """How many neighbours are made."""
    made = made_prompts(requests, size, seed)
    without = sum(not request.neighbors for request in requests)
    return Made(sum(map(bool, made.values())), sum(map(len, made.values())), without, len(requests))


def ask_unedited(
    lm: LanguageModel, requests: Sequence[EditRequest], prompts: Mapping[int, Sequence[str]]
) -> dict[int, list[MadeNeighbor]]:
    """Ask the unedited model for the made neighbours, as each record is asked."""
    texts = [text for each in prompts.values() for text in each]
    joiners = [requests[place].joiner for place, each in prompts.items() for _ in each]
    written = complete(lm, texts, WORDS, joiners=joiners) if texts else []
    said = answer(lm, [_prompt(*each) for each in zip(texts, written, joiners, strict=True)])
    predicted = (each.predicted for each in said)
    found = iter(MadeNeighbor(*each) for each in zip(texts, written, predicted, joiners, strict=True))
    return {place: [next(found) for _ in each] for place, each in prompts.items()}


def ask_edited(lm: LanguageModel, made: Sequence[Sequence[MadeNeighbor]]) -> list[list[Answer]]:
    """Answers to made neighbours, given the unedited model's words; without a target, as none of them is right."""
    prompts = [_prompt(each.prompt, each.answer, each.joiner) for some in made for each in some]
    answers = iter([each._replace(target=[]) for each in answer(lm, prompts)])
    return [[next(answers) for _ in some] for some in made]


def _prompt(text: str, answer: str, joiner: str | None) -> Prompt:
    return Prompt(asked(text, joiner), answer, joiner=joiner)


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
