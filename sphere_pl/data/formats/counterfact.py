"""CounterFact and MultiCounterFact (Meng et al. 2022), and every file in their schema."""

from collections.abc import Mapping

from sphere_pl.data.records import Record
from sphere_pl.data.request import EditRequest


def read_counterfact(record: Record) -> list[EditRequest]:
    """Read `requested_rewrite` and the prompts beside it.

    Neighbours share the record's true object, so `target_true` answers each of them; without one their answers are
    unknown. An object is `{"str": ..., "id": ...}`, as the authors write it, or its text.
    """
    neighbors = record.strings("neighborhood_prompts")
    rewrite = record.inner("requested_rewrite", 0, record.get("requested_rewrite", dict))
    true = None if rewrite.fields.get("target_true") is None else _object(record, rewrite, "target_true")
    relation = rewrite.optional("relation_id", (str, int))
    new = rewrite.fields.get("target_new")
    request = EditRequest(
        case_id=str(record.get("case_id", (int, str))),
        prompt=record.get("requested_rewrite.prompt"),
        subject=record.filled("requested_rewrite.subject"),
        target_new=_object(record, rewrite, "target_new"),
        target_true=true,
        relation_id=None if relation is None else str(relation),
        paraphrases=record.strings("paraphrase_prompts"),
        neighbors=neighbors,
        neighbor_answers=() if true is None else (true,) * len(neighbors),
        generation=record.strings("generation_prompts"),
        source=record.where,
        target_id=rewrite.inner("target_new", 0, new).optional("id") if isinstance(new, Mapping) else None,
    )
    return [request]


def _object(record: Record, rewrite: Record, name: str) -> str:
    """The text of an object, whichever way it is written."""
    inside = ".str" if isinstance(rewrite.fields.get(name), Mapping) else ""
    return str(record.get(f"requested_rewrite.{name}{inside}"))
