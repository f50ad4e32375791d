"""CounterFact and MultiCounterFact (Meng et al. 2022), and every file in their schema."""

from sphere_pl.data.records import Record
from sphere_pl.data.request import EditRequest


def read_counterfact(record: Record) -> list[EditRequest]:
    """Read `requested_rewrite` and the prompts beside it.

    Neighbours share the record's true object, so `target_true` answers each of them.
    """
    neighbors = record.strings("neighborhood_prompts")
    true = record.get("requested_rewrite.target_true.str")
    rewrite = record.inner("requested_rewrite", 0, record.get("requested_rewrite", dict))
    relation = rewrite.optional("relation_id", (str, int))
    target_id = rewrite.inner("target_new", 0, rewrite.get("target_new", dict)).optional("id")
    request = EditRequest(
        case_id=str(record.get("case_id", (int, str))),
        prompt=record.get("requested_rewrite.prompt"),
        subject=record.filled("requested_rewrite.subject"),
        target_new=record.get("requested_rewrite.target_new.str"),
        target_true=true,
        relation_id=None if relation is None else str(relation),
        paraphrases=record.strings("paraphrase_prompts"),
        neighbors=neighbors,
        neighbor_answers=(true,) * len(neighbors),
        generation=record.strings("generation_prompts"),
        source=record.where,
        target_id=target_id,
    )
    return [request]
