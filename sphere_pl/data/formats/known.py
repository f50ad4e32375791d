"""ROME's known facts (Meng et al. 2022): what is asked, about whom, and the attribute that is right."""

from sphere_pl.data.records import Record
from sphere_pl.data.request import EditRequest


def read_known(record: Record) -> list[EditRequest]:
    """Read `prompt`, `subject` and `attribute`; the prompt holds the subject.

    There is nothing to edit in such a record: the attribute is both what is true and what the model shall say.
    """
    attribute = record.get("attribute")
    number = record.optional("known_id", (int, str))
    request = EditRequest(
        case_id=str(record.number if number is None else number),
        prompt=record.get("prompt"),
        subject=record.filled("subject"),
        target_new=attribute,
        target_true=attribute,
        relation_id=record.optional("relation_id"),
        source=record.where,
    )
    return [request]
