"""SST-2: is a sentence of a film review positive? (Socher et al. 2013; GLUE's version, arXiv 1804.07461)."""

from collections.abc import Iterator

from sphere_pl.abilities.task import Item, Source, Task, label_of
from sphere_pl.data.records import Record

_SOURCE = Source(
    files=(("sst2-dev.tsv",), ("SST-2/dev.tsv",)),
    hub="nyu-mll/glue",
    config="sst2",
    split="validation",
    address="https://dl.fbaipublicfiles.com/glue/data/SST-2.zip",
)
_LABELS = ("negative", "positive")


def _read(records: Iterator[Record]) -> Iterator[Item]:
    for record in records:
        prompt = f"Film review: {record.get('sentence').strip()}\nSentiment:"
        yield Item(prompt, label_of(record, "label", _LABELS), choices=_LABELS)


SST2 = Task("sst2", "clean", (_SOURCE,), _read, ("accuracy", "weighted_f1", "matthews"), 0.5)
