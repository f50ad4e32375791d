"""KnowEdit (Zhang et al. 2024): its ZsRE, WikiData_counterfact and WikiData_recent."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from sphere_pl.data.records import Record
from sphere_pl.data.request import EditRequest, shorten
from sphere_pl.data.subject import mark_subject
from sphere_pl.errors import UserError


class Probe(NamedTuple):
    """A question and the answers that count as right, at least one."""

    prompt: str
    answers: tuple[str, ...]


def read_knowedit(record: Record) -> list[EditRequest]:
    """Read an edit with its `locality` and `portability`.

    `ground_truth` may be a string, a list, or a list of lists of aliases; all of it is read. Probes without an answer,
    which the published files hold, are left out. The kinds of probes (`Relation_Specificity`, `Forgetfulness`;
    `Reasoning`, `Subject_Aliasing`, `Logical_Generalization`) are put together. The case id is the record's place,
    unless it has a `case_id`.
    """
    subject = record.filled("subject")
    true = tuple(_answers(record, record.fields.get("ground_truth")))
    locality = _probes(record, "locality")
    portability = _probes(record, "portability")
    case_id = record.optional("case_id", (int, str))
    paraphrases = (record.optional("rephrase_prompt") or record.optional("rephrase"),)
    request = EditRequest(
        case_id=str(record.number if case_id is None else case_id),
        prompt=mark_subject(record.get("prompt"), subject),
        subject=subject,
        target_new=record.get("target_new"),
        target_true=true[0] if true else None,
        paraphrases=tuple(text for text in paraphrases if text and text.strip()),
        neighbors=tuple(probe.prompt for probe in locality),
        neighbor_answers=tuple(probe.answers[0] for probe in locality),
        source=record.where,
        portability=tuple(probe.prompt for probe in portability),
        portability_answers=tuple(probe.answers for probe in portability),
    )
    return [request]


def _probes(record: Record, name: str) -> list[Probe]:
    """All kinds of probes below a field, those without prompt or answer left out."""
    value = record.optional(name, (dict, list)) or {}
    groups = Record(record.where, record.number, value if isinstance(value, dict) else {"": value})
    probes = []
    for kind in groups.fields:
        for index, fields in enumerate(groups.optional(kind, list) or []):
            entry = record.inner(f"{name}.{kind}".rstrip("."), index, fields)
            prompts = tuple(_answers(entry, entry.fields.get("prompt"), "prompt"))
            right = "answer" if entry.fields.get("ground_truth") is None else "ground_truth"  # of CKnowEdit
            answers = tuple(_answers(entry, entry.fields.get(right), right))
            if prompts and answers:
                probes.append(Probe(prompts[0], answers))
    return probes


def _answers(record: Record, value: Any, name: str = "ground_truth") -> Iterator[str]:
    """The strings of a string, a list or a list of lists; empty ones left out."""
    if isinstance(value, list):
        for part in value:
            yield from _answers(record, part, name)
    elif isinstance(value, str):
        if value.strip():
            yield value.strip()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield record._replace(fields={name: value}).get(name)
    elif value is not None:
        raise UserError(
            f"{record.where}: the field '{name}' is {type(value).__name__} ({shorten(value, 40)}), expected text or a "
            "list of texts."
        )
