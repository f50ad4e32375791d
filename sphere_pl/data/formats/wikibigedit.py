"""WikiBigEdit (Thede et al. 2025): half a million changes of Wikidata as questions."""

from sphere_pl.data.records import Record
from sphere_pl.data.request import EditRequest
from sphere_pl.data.subject import mark_subject


def read_wikibigedit(record: Record) -> list[EditRequest]:
    """Read a change; `rephrase` and `personas` are its paraphrases, `loc` its neighbour, `mhop` its portability.

    All but `subject`, `update` and `ans` may be missing or null, as `mhop` mostly is. The questions were written by a
    model; `--data.invalid=skip` leaves out those that do not name their subject. The case id is the record's place.
    """
    subject = record.filled("subject")
    neighbor, neighbor_answer = _pair(record, "loc")
    question, answer = _pair(record, "mhop")
    paraphrases = (record.optional("rephrase"), record.optional("personas"))
    request = EditRequest(
        case_id=str(record.number),
        prompt=mark_subject(record.get("update"), subject),
        subject=subject,
        target_new=record.get("ans"),
        paraphrases=tuple(text for text in paraphrases if text and text.strip()),
        neighbors=neighbor,
        neighbor_answers=neighbor_answer,
        source=record.where,
        portability=question,
        portability_answers=(answer,) if question else (),
    )
    return [request]


def _pair(record: Record, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A question and its answer, or nothing if either is missing."""
    question, answer = record.optional(name), record.optional(f"{name}_ans")
    if not question or not question.strip() or not answer or not answer.strip():
        return (), ()
    return (question,), (answer,)
