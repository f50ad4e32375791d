"""Readers: one file a format, each a function from a raw record to its `EditRequest`s."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from sphere_pl.data.formats.counterfact import read_counterfact
from sphere_pl.data.formats.craft import read_craft
from sphere_pl.data.formats.easyedit import keep_paraphrases, read_easyedit
from sphere_pl.data.formats.jsonl import read_jsonl
from sphere_pl.data.formats.knowedit import read_knowedit
from sphere_pl.data.formats.known import read_known
from sphere_pl.data.formats.mquake import read_mquake
from sphere_pl.data.formats.uniedit import read_uniedit
from sphere_pl.data.formats.wikibigedit import read_wikibigedit
from sphere_pl.data.formats.zsre import read_zsre
from sphere_pl.data.records import Record
from sphere_pl.data.request import EditRequest

Reader = Callable[[Record], list[EditRequest]]


class Format(NamedTuple):
    """How a file of some format is read.

    Attributes:
        read: From one record to its edits, mostly one.
        complete: What can only be said with the whole file in view, if there is anything.
    """

    read: Reader
    complete: Callable[[Sequence[EditRequest]], list[EditRequest]] = list


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "counterfact": Format(read_counterfact),
        "zsre": Format(read_zsre),
        "knowedit": Format(read_knowedit),
        "easyedit": Format(read_easyedit, keep_paraphrases),
        "mquake": Format(read_mquake),
        "wikibigedit": Format(read_wikibigedit),
        "uniedit": Format(read_uniedit),
        "craft": Format(read_craft),
        "known": Format(read_known),
        "jsonl": Format(read_jsonl),
        "csv": Format(read_jsonl),
        "hf": Format(read_jsonl),
    }
)
