"""A user's own file: JSON lines, a JSON list or CSV with as little as `prompt, subject, target`."""

import json
from typing import Any

from sphere_pl.data.records import Record
from sphere_pl.data.request import EditRequest, blank_subject, shorten
from sphere_pl.errors import UserError

# What each field may be called; the first name is the one that messages use.
NAMES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "src"),
    "subject": ("subject", "entity"),
    "target": ("target", "target_new", "answer", "object"),
    "target_true": ("target_true", "ground_truth", "old_target"),
    "aliases": ("aliases", "target_aliases"),
    "relation_id": ("relation_id", "relation"),
    "case_id": ("case_id", "id"),
    "wordings": ("wordings", "wording"),
    "paraphrases": ("paraphrases", "paraphrase", "paraphrase_prompts", "rephrase", "rephrase_prompt"),
    "neighbors": ("neighbors", "neighbours", "neighborhood_prompts", "locality_prompt"),
    "neighbor_answers": ("neighbor_answers", "neighbour_answers", "locality_ground_truth"),
    "generation": ("generation", "generation_prompts"),
    "portability": ("portability", "portability_prompts"),
    "portability_answers": ("portability_answers",),
}
_ATTRIBUTE = {"target": "target_new"}  # of `EditRequest`, where it is not the field's own name
_FIELD = {alias: name for name, aliases in NAMES.items() for alias in aliases}


def read_jsonl(record: Record) -> list[EditRequest]:
    """Read a record whose fields go by the names above.

    `prompt` holds `{}` in the subject's place or the subject itself. Of the others only `subject` and `target` must be
    there. Lists may be one text; in CSV several texts are a JSON list in the cell, and an empty cell is none. Fields
    that begin with `_` are the user's own and left alone.

    Raises:
        UserError: If a field is unknown, given under two names, missing or of another type.
    """
    given = _rename(record)
    subject, prompt = given.get("subject").strip(), given.get("prompt")
    neighbors, portability = _texts(given, "neighbors"), _texts(given, "portability")
    case_id = given.optional("case_id", (int, str))
    relation = given.optional("relation_id", (int, str))
    request = EditRequest(
        case_id=str(record.number if case_id is None else case_id),
        # A subject that itself holds {} would be taken for a place to fill in.
        prompt=blank_subject(prompt, subject) if "{}" in subject else prompt,
        subject=subject,
        target_new=given.get("target"),
        target_true=given.optional("target_true"),
        relation_id=None if relation is None else str(relation),
        paraphrases=_texts(given, "paraphrases"),
        wordings=_texts(given, "wordings"),
        neighbors=neighbors,
        neighbor_answers=_matching(given, "neighbor_answers", neighbors),
        generation=_texts(given, "generation"),
        source=record.where,
        aliases=_texts(given, "aliases"),
        portability=portability,
        portability_answers=tuple((each,) for each in _matching(given, "portability_answers", portability)),
    )
    return [request]


def write_jsonl(request: EditRequest) -> dict[str, Any]:
    """The record that `read_jsonl` reads as this request.

    The format has no place for `target_id`, for where the request came from, and for further answers to a portability
    question.
    """
    fields = {name: getattr(request, _ATTRIBUTE.get(name, name)) for name in NAMES}
    fields["portability_answers"] = [answers[0] for answers in request.portability_answers]
    return {name: value for name, value in fields.items() if value not in (None, "", (), [])}


def _rename(record: Record) -> Record:
    """The record under our names, without empty cells and the user's own fields."""
    fields: dict[str, Any] = {}
    for alias, value in record.fields.items():
        if alias.startswith("_") or value is None or value == "":
            continue
        name = _FIELD.get(alias.strip().lower())
        if name is None:
            raise UserError(
                f"{record.where}: the field {alias!r} is unknown. Known: {', '.join(NAMES)} (and other names of these, "
                "such as question, target_new, rephrase). Begin it with '_' if it is not for the edit."
            )
        if name in fields:
            raise UserError(f"{record.where}: the field '{name}' is given twice, once as {alias!r}. Keep one of them.")
        fields[name] = value
    return record._replace(fields=fields)


def _texts(record: Record, name: str) -> tuple[str, ...]:
    """A list of texts, one text, or a JSON list in a cell."""
    value = record.optional(name, (str, list))
    if not isinstance(value, str):
        return record.strings(name)
    if not value.lstrip().startswith("["):
        return (value,)
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{record.where}: the field '{name}' is {shorten(value)}, which begins like a JSON list but is none. Write "
            '["one", "two"].'
        ) from error
    return record._replace(fields={name: parsed}).strings(name)


def _matching(record: Record, name: str, prompts: tuple[str, ...]) -> tuple[str, ...]:
    """Answers to prompts: one for each; one answer serves all; none if none is known."""
    answers = _texts(record, name)
    if len(answers) == 1:
        return answers * len(prompts)
    if answers and len(answers) != len(prompts):
        raise UserError(
            f"{record.where}: the field '{name}' has {len(answers)} answers for {len(prompts)} prompts. Expected one "
            "for each, or one for all."
        )
    return answers
