"""RTE: does a text imply a sentence? (Dagan et al. 2005; GLUE's version, Wang et al. 2018, arXiv 1804.07461)."""

from collections.abc import Iterator

from sphere_pl.abilities.task import INVALID, Item, Source, Task, label_of
from sphere_pl.data.records import Record

_SOURCE = Source(
    files=(("rte-train.tsv",), ("RTE/dev.tsv",), ("RTE/train.tsv",)),
    hub="nyu-mll/glue",
    config="rte",
    split="validation",
    address="https://dl.fbaipublicfiles.com/glue/data/RTE.zip",
)
_LABELS = ("entailment", "not_entailment")


def _read(records: Iterator[Record]) -> Iterator[Item]:
    for record in records:
        first, second = record.get("sentence1").strip(), record.get("sentence2").strip()
        prompt = f"Text: {first}\nStatement: {second}\nIs the statement true or false?\nAnswer:"
        yield Item(prompt, label_of(record, "label", _LABELS), choices=("True", "False"))


def _read_one_token(records: Iterator[Record]) -> Iterator[Item]:
    for record in records:
        prompt = f"{record.get('sentence1')} entails {record.get('sentence2')}. True or False? answer:"
        yield Item(prompt, 1 - label_of(record, "label", _LABELS))


def judge_true_false(text: str, item: Item) -> int:
    """The authors' reading of one token: 1 if it contains "true", 0 if it contains "false", else `INVALID`."""
    said = text.lower()
    return 1 if "true" in said else 0 if "false" in said else INVALID


RTE = Task("rte", "clean", (_SOURCE,), _read, ("accuracy", "weighted_f1", "matthews"), 0.5)
RTE_ONE_TOKEN = Task(
    "rte_one_token",
    "paper",
    (_SOURCE,),
    _read_one_token,
    ("accuracy_of_valid", "accuracy", "valid_share", "weighted_f1", "matthews"),
    0.5,
    judge_true_false,
    1,
)
