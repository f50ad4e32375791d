"""CoLA: is a sentence acceptable English? (Warstadt et al. 2019, arXiv 1805.12471)."""

from collections.abc import Iterator

from sphere_pl.abilities.task import Item, Source, Task, label_of
from sphere_pl.data.records import Record

_SOURCE = Source(
    files=(("cola-in-domain-dev.tsv", "cola-out-of-domain-dev.tsv"), ("CoLA/dev.tsv",), ("*_domain_dev.tsv",)),
    hub="nyu-mll/glue",
    config="cola",
    split="validation",
    address="https://nyu-mll.github.io/CoLA/ (cola_public_1.1.zip)",
    columns=("source", "label", "mark", "sentence"),
)
_LABELS = ("unacceptable", "acceptable")


def _read(records: Iterator[Record]) -> Iterator[Item]:
    for record in records:
        prompt = f"Sentence: {record.get('sentence').strip()}\nIs this sentence correct English?\nAnswer:"
        yield Item(prompt, label_of(record, "label", _LABELS), choices=("No", "Yes"))


COLA = Task("cola", "clean", (_SOURCE,), _read, ("matthews", "accuracy", "weighted_f1"), 0.0)
