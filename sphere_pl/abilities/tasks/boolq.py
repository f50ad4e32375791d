"""BoolQ: yes/no questions about a passage (Clark et al. 2019, arXiv 1905.10044)."""

from collections.abc import Iterator

from sphere_pl.abilities.task import INVALID, Item, Source, Task
from sphere_pl.data.records import Record

_SOURCE = Source(
    files=(("boolq-dev.jsonl",), ("BoolQ/dev.jsonl",)),
    hub="google/boolq",
    config=None,
    split="validation",
    address="https://github.com/google-research-datasets/boolean-questions (dev.jsonl)",
)


def _read(records: Iterator[Record]) -> Iterator[Item]:
    for record in records:
        passage, question = record.get("passage").strip(), record.get("question").strip().rstrip("?")
        prompt = f"Passage: {passage}\nQuestion: {question}?\nAnswer:"
        yield Item(prompt, int(record.get("answer", bool)), choices=("No", "Yes"))


def _read_one_token(records: Iterator[Record]) -> Iterator[Item]:
    for record in records:
        prompt = (
            "Please answer the given question based on the passage. The answer should be exact 'yes' or 'no'. "
            f"passage: {record.get('passage')} question: {record.get('question')}. answer: "
        )
        yield Item(prompt, int(record.get("answer", bool)))


def judge_yes_no(text: str, item: Item) -> int:
    """The authors' reading of one token: 1 if it contains "yes", 0 if it contains "no", else `INVALID`."""
    said = text.lower()
    return 1 if "yes" in said else 0 if "no" in said else INVALID


BOOLQ = Task("boolq", "clean", (_SOURCE,), _read, ("accuracy", "weighted_f1", "matthews"), 0.5)
BOOLQ_ONE_TOKEN = Task(
    "boolq_one_token",
    "paper",
    (_SOURCE,),
    _read_one_token,
    ("accuracy_of_valid", "accuracy", "valid_share", "weighted_f1", "matthews"),
    0.5,
    judge_yes_no,
    1,
)
