"""MRPC: do two sentences say the same? (Dolan and Brockett 2005; GLUE's version, arXiv 1804.07461)."""

from collections.abc import Iterator

from sphere_pl.abilities.task import Item, Source, Task, label_of
from sphere_pl.data.records import Record

_SOURCE = Source(
    files=(("mrpc-dev.tsv",), ("MRPC/dev.tsv",), ("msr_paraphrase_test.txt",)),
    hub="nyu-mll/glue",
    config="mrpc",
    split="validation",
    address="https://www.microsoft.com/en-us/download/details.aspx?id=52398 (msr_paraphrase_test.txt)",
)
_LABELS = ("not_equivalent", "equivalent")
# Names of the original file beside those of the hub.
_FIELDS = {"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"}


def _read(records: Iterator[Record]) -> Iterator[Item]:
    for record in records:
        first, second, label = (old if old in record.fields else new for new, old in _FIELDS.items())
        prompt = (
            f"First sentence: {record.get(first).strip()}\nSecond sentence: {record.get(second).strip()}\n"
            "Do the two sentences mean the same?\nAnswer:"
        )
        yield Item(prompt, label_of(record, label, _LABELS), choices=("No", "Yes"))


MRPC = Task("mrpc", "clean", (_SOURCE,), _read, ("accuracy", "weighted_f1", "matthews"), 0.5)
