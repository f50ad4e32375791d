"""MMLU: exam questions on 57 subjects with four choices (Hendrycks et al. 2021, arXiv 2009.03300)."""

from collections import defaultdict
from collections.abc import Iterator

from sphere_pl.abilities.task import Item, Source, Task, label_of
from sphere_pl.data.records import Record

_LETTERS = ("A", "B", "C", "D")
_COLUMNS = ("question", "choice0", "choice1", "choice2", "choice3", "answer")
_ADDRESS = "https://github.com/hendrycks/test (data.tar: test and dev)"
_TEST = Source((("mmlu/test/*.csv",), ("test/*.csv",)), "cais/mmlu", "all", "test", _ADDRESS, _COLUMNS)
_DEV = Source((("mmlu/dev/*.csv",), ("dev/*.csv",)), "cais/mmlu", "all", "dev", _ADDRESS, _COLUMNS)


def _read(test: Iterator[Record], dev: Iterator[Record]) -> Iterator[Item]:
    """Questions after the five worked examples of their subject."""
    shots: dict[str, list[str]] = defaultdict(list)
    for record in dev:
        if len(shots[_subject(record)]) < 5:
            shots[_subject(record)].append(f"{_ask(record)} {_LETTERS[_label(record)]}\n\n")
    for record in test:
        subject = _subject(record)
        opening = f"Exam questions on {subject}, each with one right choice.\n\n"
        yield Item(_ask(record), _label(record), choices=_LETTERS, shots=opening + "".join(shots[subject]))


def _subject(record: Record) -> str:
    """From the hub's field, or from the file's name, such as `us_history_test.csv`."""
    name = record.fields.get("subject") or record.get("file").rsplit("_", 1)[0]
    return str(name).replace("_", " ")


def _ask(record: Record) -> str:
    choices = record.optional("choices", list) or [record.get(f"choice{number}") for number in range(4)]
    if len(choices) != 4:
        raise record.error(f"{len(choices)} choices, expected 4.")
    lines = [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=True)]
    return "\n".join([f"Question: {record.get('question').strip()}", *lines, "Answer:"])


def _label(record: Record) -> int:
    return label_of(record, "answer", _LETTERS)


MMLU = Task("mmlu", "clean", (_TEST, _DEV), _read, ("accuracy", "weighted_f1"), 0.25)
