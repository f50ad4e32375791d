"""Natural Questions, open version (Kwiatkowski et al. 2019; Lee et al. 2019, arXiv 1906.00300)."""

import re
import string
from collections.abc import Iterator

from sphere_pl.abilities.task import Item, Source, Task
from sphere_pl.data.records import Record

_ADDRESS = "https://github.com/google-research-datasets/natural-questions (nq_open/NQ-open.dev.jsonl)"
_OPEN = Source(
    files=(("nq-open-dev.jsonl",), ("NQ-open.dev.jsonl",)),
    hub="google-research-datasets/nq_open",
    config=None,
    split="validation",
    address=_ADDRESS,
)
_WITH_PASSAGE = Source(
    files=(("nq-open-with-passage.jsonl",),),
    hub="google-research-datasets/nq_open",
    config=None,
    split="validation",
    address=(
        "https://github.com/JasonForJoy/Model-Editing-Hurt (its open-domain QA test file: Natural Questions with a "
        "machine-written passage each, fields question, answer and output; the hub's records have no passage)"
    ),
)
_SHOTS = (
    "Question: which planet is closest to the sun?\nAnswer: Mercury\n\n"
    "Question: who painted the mona lisa?\nAnswer: Leonardo da Vinci\n\n"
    "Question: when did the berlin wall fall?\nAnswer: 9 November 1989\n\n"
)


def _read(records: Iterator[Record]) -> Iterator[Item]:
    for record in records:
        question = record.get("question").strip().rstrip("?")
        yield Item(f"Question: {question}?\nAnswer:", 1, answers=_answers(record), shots=_SHOTS)


def _read_with_passage(records: Iterator[Record]) -> Iterator[Item]:
    for record in records:
        passages = record.strings("output")
        if not passages:
            raise record.error(f"the field 'output' holds no passage. Use the file of {_WITH_PASSAGE.address}.")
        lines = [
            "Refer to the passage below and answer the following question.",
            f"Passage: {passages[0]}",
            f"Question: {record.get('question')}",
            "Answer:",
        ]
        yield Item("\n".join(lines), 1, answers=_answers(record))


def _answers(record: Record) -> tuple[str, ...]:
    answers = record.strings("answer")
    if not answers:
        raise record.error("the field 'answer' holds no answer.")
    return answers


def normalize(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (Rajpurkar et al. 2016, SQuAD).

    Example:
        >>> normalize("The  Beatles, a band.")
        'beatles band'
    """
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def judge_exact(text: str, item: Item) -> int:
    """1 if the answer is one of the right ones, both normalised."""
    return int(normalize(text) in {normalize(answer) for answer in item.answers})


def judge_span(text: str, item: Item) -> int:
    """The authors' "soft" match: 1 if any run of words of the answer is a right one, both normalised.

    Example:
        >>> judge_span(" It was in May 1972, I think.", Item("", 1, answers=("may 1972",)))
        1
    """
    padded = f" {normalize(text)} "
    return int(any(f" {gold} " in padded for answer in item.answers if (gold := normalize(answer))))


NATURAL_QUESTIONS = Task("nq", "clean", (_OPEN,), _read, ("exact_match",), 0.0, judge_exact, 16, ("\n",))
NATURAL_QUESTIONS_WITH_PASSAGE = Task(
    "nq_with_passage", "paper", (_WITH_PASSAGE,), _read_with_passage, ("exact_match",), 0.0, judge_span, 20
)
