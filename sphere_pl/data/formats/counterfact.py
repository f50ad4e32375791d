"""CounterFact and MultiCounterFact (Meng et al. 2022), and every file in their schema."""

from sphere_pl.data.records import Record
from sphere_pl.data.request import EditRequest


def read_counterfact(record: Record) -> list[EditRequest]:
    """Read `requested_rewrite` and the prompts beside it.

    Neighbours share the record's true object, so `target_true` answers each of them; without one their answers are
    unknown. An object is `{"str": ..., "id": ...}`, as the authors write it, or its text.
    """
    neighbors = record.strings("neighborhood_prompts")
    rewrite = record.inner("requested_rewrite", 0, record.get("requested_rewrite", dict))
    true = None if rewrite.fields.get("target_true") is None else record.entity("requested_rewrite.target_true")
    relation = rewrite.optional("relation_id", (str, int))
    request = EditRequest(
        case_id=str(record.get("case_id", (int, str))),
        prompt=record.get("requested_rewrite.prompt"),
        subject=record.filled("requested_rewrite.subject"),
        target_new=record.entity("requested_rewrite.target_new"),
        target_true=true,
        relation_id=None if relation is None else str(relation),
        paraphrases=record.strings("paraphrase_prompts"),
        neighbors=neighbors,
        neighbor_answers=() if true is None else (true,) * len(neighbors),
        generation=record.strings("generation_prompts"),
        source=record.where,
        target_id=rewrite.entity_id("target_new"),
    )
    return [request]
