"""Which format a record is in, told from its fields."""

from collections.abc import Callable, Mapping
from typing import Any

from sphere_pl.data.fields import field_of

Fields = Mapping[str, Any]
OWN = "jsonl"


def formats_of(fields: Fields) -> list[str]:
    """The formats that a record fits, the most special one first; two where only the user can say which is meant.

    Example:
        >>> formats_of({"prompt": "{} is in", "subject": "Rome", "target": "Spain"}), formats_of({"colour": "red"})
        (['jsonl'], [])
    """
    special = [name for name, fits in _SPECIAL.items() if fits(fields)]
    if special:
        return special[:1]
    found = {field_of(name) for name in fields}
    own = [OWN] if {"prompt", "target"} <= found else []
    # Most rephrasings of EasyEdit's files are beginnings for free text, those of one's own records are not.
    return ["easyedit", *own] if set(fields) >= _EASYEDIT else own


def _has(*names: str) -> Callable[[Fields], bool]:
    return lambda fields: set(names) <= set(fields)


def _is(name: str, kind: type) -> Callable[[Fields], bool]:
    return lambda fields: isinstance(fields.get(name), kind)


def _knowedit(fields: Fields) -> bool:
    probes = [isinstance(fields.get(name), Mapping) for name in ("locality", "portability")]
    return {"prompt", "target_new"} <= set(fields) and any(probes)


def _craft(fields: Fields) -> bool:
    kinds = ("alias_portability", "composite_portability", "temporal_locality", "common_sense_locality")
    return any(kind in fields for kind in kinds)


_EASYEDIT = {"case_id", "prompt", "subject", "target_new", "ground_truth", "rephrase_prompt", "locality_prompt"}
_SPECIAL: dict[str, Callable[[Fields], bool]] = {
    "counterfact": _is("requested_rewrite", Mapping),
    "mquake": _is("requested_rewrite", list),
    "uniedit": _is("edit", Mapping),
    "zsre": _has("subject", "src", "answers", "loc"),
    "wikibigedit": _has("subject", "update", "ans"),
    "known": _has("prompt", "subject", "attribute"),
    "craft": _craft,
    "knowedit": _knowedit,
}
