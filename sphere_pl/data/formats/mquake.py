"""MQuAKE (Zhong et al. 2023): edits with multi-hop questions whose answers follow from them."""

from sphere_pl.data.records import Record
from sphere_pl.data.request import EditRequest
from sphere_pl.errors import UserError


def read_mquake(record: Record) -> list[EditRequest]:
    """Read one request for each rewritten fact of a record.

    The multi-hop questions go with the record's last request: when that one is scored, the others have been edited.
    Case ids are the record's with the rewrite's place (`7417-0`, `7417-1`). `--data.limit` counts edits.

    Raises:
        UserError: If a field is missing or of another type.
    """
    rewrites = record.get("requested_rewrite", list)
    if not rewrites:
        raise UserError(f"{record.where}: the field 'requested_rewrite' is empty. Expected the facts to edit.")
    requests = [
        _read_rewrite(record, index, record.inner("requested_rewrite", index, fields))
        for index, fields in enumerate(rewrites)
    ]
    questions = record.strings("questions")
    answers = (record.get("new_answer"), *record.strings("new_answer_alias"))
    requests[-1] = requests[-1]._replace(portability=questions, portability_answers=(answers,) * len(questions))
    return requests


def _read_rewrite(record: Record, index: int, rewrite: Record) -> EditRequest:
    target, question = rewrite.entity("target_new"), rewrite.optional("question")
    relation = rewrite.optional("relation_id")
    return EditRequest(
        case_id=f"{record.get('case_id', (int, str))}-{index}",
        prompt=rewrite.get("prompt"),
        subject=rewrite.filled("subject"),
        target_new=target,
        target_true=None if rewrite.optional("target_true", object) is None else rewrite.entity("target_true"),
        relation_id=relation,
        paraphrases=(question,) if question and question.strip() else (),
        source=record.where,
        target_id=rewrite.entity_id("target_new"),
        aliases=_aliases(record, target),
    )


def _aliases(record: Record, target: str) -> tuple[str, ...]:
    """Other names of an object, from the hop that it answers."""
    for index, fields in enumerate(record.optional("new_single_hops", list) or []):
        hop = record.inner("new_single_hops", index, fields)
        if hop.optional("answer") == target:
            return hop.strings("answer_alias")
    return ()
