"""A user's own file: JSON lines, a JSON list or CSV with as little as `prompt, subject, target`."""

import ast
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from sphere_pl.data.fields import NAMES, field_of, is_unused
from sphere_pl.data.records import Number, Record
from sphere_pl.data.request import EditRequest, shorten
from sphere_pl.data.subject import blank_subject, has_stray_braces
from sphere_pl.errors import UserError
from sphere_pl.text.numbers import counted
from sphere_pl.text.usage import did_you_mean

_LIST = 'like a JSON list but is none. Write ["one", "two"]'
_TEXT = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
# A list of texts as Python prints it, and so pandas into a cell; that of numpy has no commas, and is none.
_PYTHON_LIST = re.compile(rf"\[\s*(?:{_TEXT}\s*(?:,\s*{_TEXT}\s*)*)?\]")
_LIST_OF_TEXTS = re.compile(r"""\[\s*['"].*\]""", re.DOTALL)
_CONVERSATION = (
    "is a conversation, of which one question is edited. Write that as the text of 'prompt', a system prompt as "
    "--data.system, and choose --data.chat=chat: the model's own template makes the conversation of them."
)
_NECESSARY = ("prompt", "subject", "target")
_ATTRIBUTE = {"target": "target_new"}  # of `EditRequest`, where it is not the field's own name


def read_jsonl(record: Record) -> list[EditRequest]:
    """Read a record whose fields go by the names above.

    `prompt` holds `{}` in the subject's place or the subject itself; the methods that edit at the subject refuse a
    record without one. Of the others only `target` must be there; of several targets the others are aliases. Lists may
    be one text; in CSV several texts are a JSON list in the cell, and an empty cell is none. Neighbours and portability
    questions may be objects, each with its answer. Fields that begin with `_` are the user's own and left alone.

    Raises:
        UserError: If a field is unknown, given under two names, missing or of another type.
    """
    given = _rename(record)
    subject, prompt = (given.optional("subject") or "").strip(), given.get("prompt")
    if not subject and "{}" in prompt:
        given.get("subject")
    targets, true = _several(given, "target"), _several(given, "target_true")
    if not targets:
        raise given.error(
            f"the field 'target' is {_missing(given)}. Write the text that the model shall say after the edit, or "
            "leave this record out (--data.invalid=skip leaves out all such)."
        )
    neighbors, neighbor_answers = _probes(given, "neighbors", "neighbor_answers")
    portability, portability_answers = _probes(given, "portability", "portability_answers")
    case_id = given.optional("case_id")
    request = EditRequest(
        case_id=record.key or str(record.number) if case_id is None else case_id,
        # A subject that itself holds {} would be taken for a place to fill in.
        prompt=blank_subject(prompt, subject) if "{}" in subject else prompt,
        subject=subject,
        target_new=targets[0],
        target_true=true[0] if true else None,
        relation_id=given.optional("relation_id"),
        paraphrases=_texts(given, "paraphrases"),
        wordings=_texts(given, "wordings"),
        neighbors=neighbors,
        neighbor_answers=tuple(answers[0] for answers in neighbor_answers),
        generation=_texts(given, "generation"),
        source=record.where,
        aliases=(*targets[1:], *_several(given, "aliases")),
        portability=portability,
        portability_answers=portability_answers,
        joiner=_joiner(given),
    )
    return [request]


def _missing(given: Record) -> str:
    """What stands where a target should."""
    value = given.fields.get("target")
    if value is None:
        return f"missing or empty (found: {', '.join(map(str, given.fields))[:200]})"
    return f"{type(value).__name__} ({shorten(value, 40)}), which holds no text"


def write_jsonl(request: EditRequest) -> dict[str, Any]:
    """The record that `read_jsonl` reads as this request.

    The format has no place for `target_id`, for where the request came from, and for further answers to a portability
    question.
    """
    fields = {name: getattr(request, _ATTRIBUTE.get(name, name)) for name in NAMES}
    fields["prompt"] = _written(request.prompt, request.subject)
    fields["wordings"] = tuple(_written(wording, request.subject) for wording in request.wordings)
    fields["portability_answers"] = [answers[0] for answers in request.portability_answers]
    return {
        name: value for name, value in fields.items() if value not in (None, (), []) and (value or name == "joiner")
    }


def _written(template: str, subject: str) -> str:
    """A prompt as it is read again: with its subject, where other braces stand beside the place for it."""
    return template.replace("{}", subject, 1) if subject and has_stray_braces(template) else template


def _rename(record: Record) -> Record:
    """The record under our names, without empty cells and what is no part of the edit."""
    fields: dict[str, Any] = {}
    if _is_conversation(record.fields):
        raise record.error(f"this {_CONVERSATION}")
    for alias, value in record.fields.items():
        name = field_of(alias)
        blank = value is None or (value == "" and (record.cells or name != "joiner"))
        unknown = name not in _NECESSARY and isinstance(value, float) and math.isnan(value)  # as pandas writes nothing
        if blank or unknown or is_unused(alias) or _is_row_number(alias, value):
            continue
        if _is_conversation(value):
            raise record.error(f"the field {shorten(alias, 40)} {_CONVERSATION}")
        if name is None:
            raise _unknown(record, alias)
        if name in fields:
            raise UserError(
                f"{record.where}: the field '{name}' is given twice, once as {alias!r}. Keep one of them, or leave "
                f"this one out: --data.columns '{{{alias}: null}}'."
            )
        alone = name in ("prompt", "subject") and isinstance(value, list) and len(value) == 1
        fields[name] = value[0] if alone else value
    return record._replace(fields=fields)


def _is_conversation(value: Any) -> bool:
    """Whether a value is what a chat template is given: messages with a role and a content, or one of them."""
    messages = value if isinstance(value, list) else [value]
    return bool(messages) and all(isinstance(each, Mapping) and {"role", "content"} <= set(each) for each in messages)


def _is_row_number(alias: str, value: Any) -> bool:
    """Whether a column without a name counts the rows, as pandas writes it."""
    return (not alias.strip() or alias.startswith("Unnamed: ")) and str(value).strip().isdecimal()


def _unknown(record: Record, alias: str) -> UserError:
    """What to raise about a column that is no field, with the necessary field that it may be."""
    if record.cells and not any(map(field_of, record.fields)):
        return record.error(
            f"the columns {shorten(', '.join(record.fields))} are no fields. The first row of a table names its "
            f"columns: expected {', '.join(_NECESSARY)} there, or other names and --data.columns."
        )
    meant = did_you_mean(alias.strip().lower(), (other for names in NAMES.values() for other in names))
    given = {field_of(other) for other, value in record.fields.items() if value not in (None, "")}
    field = next((name for name in _NECESSARY if name not in given), "paraphrases")
    return record.error(
        f"the field {shorten(alias, 40)} is unknown. {meant}{' ' if meant else ''}Known: {', '.join(NAMES)} (and other "
        "names of these, such as question, target_new, rephrase). Say what it is, --data.columns "
        f"'{{{alias[:40]}: {field}}}', leave it out with null in that place, or begin its name with '_'."
    )


def _joiner(record: Record) -> str | None:
    """What stands between prompt and target; in a cell, which cannot be empty, a JSON text such as `""`."""
    value = record.optional("joiner")
    if value is not None and record.cells and value[:1] == '"':
        parsed = _parsed(record, "joiner", value, "like a JSON text but is none")
        return record._replace(fields={"joiner": parsed}).optional("joiner")  # type: ignore[no-any-return]
    return None if value is None else str(value)


def _several(record: Record, name: str) -> tuple[str, ...]:
    """A text, or a list of texts and of lists of them; blank ones left out."""
    return tuple(text for text in flat_texts(record, name, record.fields.get(name)) if text.strip())


def flat_texts(record: Record, name: str, value: Any) -> Iterator[str]:
    """The texts of a text, a list or a list of lists.

    Raises:
        UserError: If there is something else among them.
    """
    if isinstance(value, str) and record.cells and _LIST_OF_TEXTS.fullmatch(value.strip()):
        value = _listed(record, name, value.strip())
    if isinstance(value, list):
        for part in value:
            yield from flat_texts(record, name, part)
    elif isinstance(value, Mapping) and "str" in value:  # an object of Wikidata, as CounterFact has it
        yield from flat_texts(record, name, value["str"])
    elif value is not None:
        yield record._replace(fields={name: value}).get(name)


def _probes(record: Record, name: str, answers: str) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Prompts and all right answers of each: two lists, or one of objects."""
    value = record.fields.get(name)
    listed = value if isinstance(value, list) else [value]
    if not any(isinstance(each, Mapping) for each in listed):
        prompts = _texts(record, name)
        return prompts, tuple((each,) for each in _matching(record, answers, prompts))
    if answers in record.fields:
        raise UserError(f"{record.where}: the answers of '{name}' are given twice, in it and as '{answers}'. Keep one.")
    found = [_probe(record.inner(name, index, fields)) for index, fields in enumerate(listed)]
    if any(right for _, right in found) and not all(right for _, right in found):
        raise UserError(
            f"{record.where}: some of '{name}' have an answer and some have none. Expected one for each: "
            "add those that are missing, or take these prompts out."
        )
    return tuple(prompt for prompt, _ in found), tuple(right for _, right in found if right)


def _probe(entry: Record) -> tuple[str, tuple[str, ...]]:
    given = {field_of(alias): value for alias, value in entry.fields.items()}
    found = entry._replace(fields={name: value for name, value in given.items() if name in ("prompt", "target")})
    true = entry._replace(fields={"target": given.get("target_true")})
    return found.get("prompt"), _several(found, "target") or _several(true, "target")


def _texts(record: Record, name: str) -> tuple[str, ...]:
    """A list of texts, one text, or a JSON list in a cell."""
    value = record.fields.get(name)
    if not isinstance(value, str):
        return (record.get(name),) if isinstance(value, int | float) else record.strings(name)
    if not value.lstrip().startswith("["):
        return (value,)
    listed = _listed(record, name, value.strip())
    return record._replace(fields={name: listed}).strings(name) if isinstance(listed, list) else (value,)


def _listed(record: Record, name: str, text: str) -> Any:
    """What a text holds that is written as a list; the text, should it only begin so: `[INST] Hi`, `[1] says`.

    Raises:
        UserError: If it begins as a list of texts does and is none.
    """
    if _PYTHON_LIST.fullmatch(text):
        return ast.literal_eval(text)
    try:
        return json.loads(text, parse_float=Number)
    except (ValueError, RecursionError):
        return _parsed(record, name, text, _LIST) if text[1:].lstrip()[:1] in ("'", '"') else text


def _parsed(record: Record, name: str, value: str, expected: str) -> Any:
    try:
        return json.loads(value, parse_float=Number)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{record.where}: the field '{name}' is {shorten(value)}, which begins {expected}.") from error


def _matching(record: Record, name: str, prompts: tuple[str, ...]) -> tuple[str, ...]:
    """Answers to prompts: one for each; one answer serves all; none if none is known."""
    answers = _texts(record, name)
    if len(answers) == 1 and prompts:
        return answers * len(prompts)
    if answers and len(answers) != len(prompts):
        raise record.error(
            f"the field '{name}' has {counted(len(answers), 'answer')} for {counted(len(prompts), 'prompt')}. Expected "
            "one for each, or one for all. Add what is missing, or leave both out of this record."
        )
    return answers
