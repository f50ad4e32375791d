"""CRAFT (Tang et al. 2025): dated facts with alias and composite portability, temporal and common-sense locality."""

from collections.abc import Iterator
from typing import Any

from sphere_pl.data.formats.jsonl import flat_texts
from sphere_pl.data.formats.knowedit import Probe
from sphere_pl.data.records import Record
from sphere_pl.data.request import EditRequest
from sphere_pl.data.subject import mark_subject

_PROMPTS, _ANSWERS = ("prompt", "question"), ("answer", "ground_truth", "target", "target_new")


def read_craft(record: Record) -> list[EditRequest]:
    """Read an edit with its four kinds of probes, each an object or a list of them; all but prompt and answer optional.

    The kinds are `alias_portability` and `composite_portability`, `temporal_locality` and `common_sense_locality`.
    Other fields, such as dates, are left alone. The subject may be missing.
    """
    subject = (record.optional("subject") or "").strip()
    prompt, answers = _one(record, _PROMPTS), _all(record, ("target_new", "target", "answer"))
    true = tuple(_texts(record, ("ground_truth", "target_old", "old_answer")))
    local = [*_probes(record, "temporal_locality"), *_probes(record, "common_sense_locality")]
    follow = [*_probes(record, "alias_portability"), *_probes(record, "composite_portability")]
    case_id = record.optional("case_id", (int, str))
    request = EditRequest(
        case_id=record.key or str(record.number) if case_id is None else str(case_id),
        prompt=mark_subject(prompt, subject),
        subject=subject,
        target_new=answers[0],
        target_true=true[0] if true else None,
        paraphrases=tuple(_texts(record, ("rephrase", "paraphrases"))),
        neighbors=tuple(probe.prompt for probe in local),
        neighbor_answers=tuple(probe.answers[0] for probe in local),
        source=record.where,
        aliases=answers[1:],
        portability=tuple(probe.prompt for probe in follow),
        portability_answers=tuple(probe.answers for probe in follow),
    )
    return [request]


def _probes(record: Record, name: str) -> Iterator[Probe]:
    value: Any = record.fields.get(name)
    for index, fields in enumerate(value if isinstance(value, list) else [] if value is None else [value]):
        entry = record.inner(name, index, fields)
        prompts, answers = tuple(_texts(entry, _PROMPTS)), tuple(_texts(entry, _ANSWERS))
        if prompts and answers:
            yield Probe(prompts[0], answers)


def _texts(record: Record, names: tuple[str, ...]) -> Iterator[str]:
    """The texts under the first of some names that is there, blank ones left out."""
    name = next((each for each in names if record.fields.get(each) is not None), names[0])
    yield from (text for text in flat_texts(record, name, record.fields.get(name)) if text.strip())


def _one(record: Record, names: tuple[str, ...]) -> str:
    return record.filled(next((each for each in names if record.fields.get(each) is not None), names[-1]))


def _all(record: Record, names: tuple[str, ...]) -> tuple[str, ...]:
    found = tuple(_texts(record, names))
    if not found:
        record.filled(names[-1])
    return found
