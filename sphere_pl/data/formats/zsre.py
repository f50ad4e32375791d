"""ZsRE in the MEND evaluation form (Levy et al. 2017, Mitchell et al. 2022), as MEMIT and SPHERE use it."""

from sphere_pl.data.records import Record
from sphere_pl.data.request import EditRequest, shorten
from sphere_pl.data.subject import find_alike, mark_subject
from sphere_pl.errors import UserError

MARK = "nq question: "


def read_zsre(record: Record) -> list[EditRequest]:
    """Read a question about a fact, the first of its answers as the new object.

    The target is the *true* answer `answers[0]`, as in the papers; `alt` and `pred` are not used, nor is the
    `portability` that some files add, because its answers follow from `alt`. Of several mentions of the subject in
    `src` the last becomes `{}` (the authors blank all, and then refuse the record). The case id is the record's place.

    Raises:
        UserError: If a field is missing, `src` does not name the subject or `loc` is no Natural Questions probe.
    """
    subject, source = record.filled("subject"), record.get("src")
    answers = record.strings("answers")
    if not answers:
        raise UserError(f"{record.where}: the field 'answers' is missing or empty. Expected a list of right answers.")
    if subject not in source and find_alike(source, subject) is None:
        raise UserError(
            f"{record.where}: the subject {shorten(subject)} does not occur in src {shorten(source)}. Expected a "
            "question that names it letter for letter; correct the record, or leave such records out with "
            "--data.invalid=skip."
        )
    probe = record.get("loc")
    if MARK not in probe:
        raise UserError(f"{record.where}: the field 'loc' is {shorten(probe)}, expected it to hold {MARK!r}.")
    request = EditRequest(
        case_id=str(record.number),
        prompt=mark_subject(source, subject),
        subject=subject,
        target_new=answers[0],
        paraphrases=(record.get("rephrase"),),
        neighbors=(f"{probe}?",),
        neighbor_answers=(record.get("loc_ans"),),
        source=record.where,
        aliases=answers[1:],
    )
    return [request]
