"""`python -m sphere_pl check FILE --model.name X`: what a run would learn from a file, before anything is learnt."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sphere_pl.commands.parsers import SettingsParser, users_mistakes
from sphere_pl.data.request import EditRequest, shorten
from sphere_pl.data.stream import EditStream
from sphere_pl.data.survey import Survey, survey
from sphere_pl.errors import UserError
from sphere_pl.model.opening import open_tokenizer
from sphere_pl.model.token_checks import check_probes, check_target
from sphere_pl.model.tokens import encode, in_context, tokenize
from sphere_pl.process.console import say
from sphere_pl.text.joining import opens_with_template
from sphere_pl.text.names import option
from sphere_pl.text.numbers import counted
from sphere_pl.text.usage import program

_SHOWN = 3
_WIDTH = 60
_MOST = 24  # tokens of a target that are shown
_BROKEN = "\ufffd"  # what part of a character is decoded to


def main(args: Sequence[str]) -> None:
    """Read a file of edits, tokenise them and say what stands out; nothing is edited, no weights are read.

    Raises:
        UserError: If the file or the model cannot be read, or no record can be edited.
    """
    given = _parse(args)
    data: EditStream = given.data
    requests, refused = data.readable()
    if not requests:
        raise UserError(str(refused[0]) if refused else f"There is no record to edit in {data.path}.")
    opened = open_tokenizer(**given.model)
    say(f"{data.path or 'the built-in facts'}: {counted(len(requests), 'edit')}, format {data.format}")
    if refused:
        say(f"{counted(len(refused), 'record')} cannot be edited. The first: {refused[0]}")
    say(f"With the tokenizer of {opened.name}, a target follows its prompt so (tokens between bars):")
    for request in requests[:_SHOWN]:
        say(_shown(opened.tokenizer, request))
    remarks = [
        *_remarks(requests, survey(requests, data.batch_size)),
        *_tokens(opened.tokenizer, requests, opened.longest),
    ]
    for remark in remarks:
        say(f"- {remark}")
    say("Nothing else stands out." if remarks else "Nothing stands out.")
    if not refused:
        say(f"Edit them: {_command(data, given.model.name)}")


def _parse(args: Sequence[str]) -> Any:
    parser = SettingsParser(
        prog=f"{program()} check",
        allow_abbrev=False,
        description="Say what a run would learn from a file: its format, how targets join prompts and become tokens, "
        "which edits share a key, contradict or repeat one another. No weights are read.",
    )
    parser.add_argument("file", type=str, nargs="?", default=None, help="The file, folder or hub data set.")
    parser.add_argument("--config", action="config", help="A YAML file with any of these arguments.")
    parser.add_function_arguments(open_tokenizer, "model")
    parser.add_class_arguments(EditStream, "data", skip={"invalid"})
    parser.set_defaults({"data.limit": None})
    with users_mistakes():
        found = parser.parse_args(list(args))
        if found.file is not None:
            found.data.path = found.file
        return parser.instantiate_classes(found)


def _command(data: EditStream, model: str) -> str:
    """The command that edits what was checked."""
    words = ["fit"]
    if data.path is not None:
        words += [option("--data.path", data.path)]
    if data.columns:
        words += [option("--data.columns", json.dumps(dict(data.columns)))]
    return f"{program()} {' '.join([*words, option('--model.name', model)])}"


def _shown(tokenizer: Any, request: EditRequest) -> str:
    """An edit with its target's tokens, and the token that stands for its subject."""
    prompt = in_context(request, "", request.target_new)
    (tokens,) = tokenize(tokenizer, [prompt])
    text = prompt.text if len(prompt.text) <= _WIDTH else f"...{prompt.text[-_WIDTH:]}"
    parts, more = "|".join(pieces(tokenizer, tokens.target[:_MOST])), len(tokens.target) - _MOST
    parts += f"| and {more} more" if more > 0 else "|"
    length = tokens.subject_last + 1 - tokens.subject_first
    about = f"the last of the {length} tokens" if length > 1 else "the only token"
    at = f"; edited at {about} of {shorten(request.subject)}" if request.subject else "; it has no subject"
    between = prompt.whole[len(prompt.text) : len(prompt.whole) - len(prompt.target)]
    return f"  {Path(request.source).name}: {text!r} + {between!r} + {shorten(request.target_new)} = |{parts}{at}"


def pieces(tokenizer: Any, ids: Sequence[int]) -> Iterator[str]:
    """The texts of tokens; those of parts of characters together, with their number."""
    held: list[int] = []
    for place, token in enumerate(ids, start=1):
        held.append(token)
        text = tokenizer.decode(held, clean_up_tokenization_spaces=False)
        if _BROKEN not in text or place == len(ids):
            yield text if len(held) == 1 else f"{text} ({len(held)} tokens)"
            held = []


def _remarks(requests: Sequence[EditRequest], found: Survey) -> Iterator[str]:
    """What the records alone say: how they lie to each other, and what is odd about single ones."""
    yield from _of_several(requests, found)
    yield from _of_single(requests, found)


def _of_several(requests: Sequence[EditRequest], found: Survey) -> Iterator[str]:
    """Edits that contradict or repeat each other, or whose keys are alike."""
    if found.contradicted:
        first, by = next(iter(found.contradicted.items()))
        refusal = " (in one batch: refused)" if found.together else ""
        yield (
            f"{counted(len(found.contradicted), 'edit is', 'edits are')} contradicted by a later one{refusal}: "
            f"{_edit(requests[first])}, then {_edit(requests[by])}. Choose with --data.conflicts."
        )
    if found.repeated:
        yield f"{sum(map(len, found.repeated))} edits are repetitions: {_group(requests, found.repeated[0])}."
    if found.shared:
        yield (
            f"{sum(map(len, found.shared))} edits share their key with another one, their prompts are the same up to "
            f"the subject's end: {_group(requests, found.shared[0])}."
        )
    if found.alike:
        count = sum(map(len, found.alike))
        yield f"{count} more edits have a subject in common, so that their keys are nearly equal: " + _group(
            requests, found.alike[0]
        )


def _of_single(requests: Sequence[EditRequest], found: Survey) -> Iterator[str]:
    """Edits whose subject is missing or doubtful, and those typed in a chat template."""
    if found.inside:
        request = requests[found.inside[0]]
        yield (
            f"{counted(len(found.inside), 'edit has its', 'edits have their')} subject inside a longer word, the "
            f"first is {_edit(request)} with {request.subject!r}. Is it the subject that was meant?"
        )
    typed = [request for request in requests if opens_with_template(request.question)]
    if typed:
        yield (
            f"{counted(len(typed), 'edit is', 'edits are')} typed in a chat template, the first is {_edit(typed[0])}. "
            "What is typed so is edited as it stands, in no other form. The question alone and --data.chat=both edit a "
            "fact in plain and in chat form."
        )
    if found.bare:
        yield (
            f"{counted(len(found.bare), 'edit has', 'edits have')} no subject, the first is "
            f"{_edit(requests[found.bare[0]])}. FT, LocFT-BF and UltraEdit take such edits, methods that edit at "
            "the subject refuse them."
        )


def _edit(request: EditRequest) -> str:
    place = request.source.rpartition("/")[2]
    return f"{place} ({shorten(request.question, _WIDTH)} -> {shorten(request.target_new, _WIDTH)})"


def _group(requests: Sequence[EditRequest], places: Sequence[int]) -> str:
    shown = ", ".join(_edit(requests[place]) for place in places[:_SHOWN])
    return f"{shown} and {len(places) - _SHOWN} more" if len(places) > _SHOWN else shown


def _tokens(tokenizer: Any, requests: Sequence[EditRequest], longest: int | None) -> Iterator[str]:
    """What the tokenizer makes of them."""
    yield from _refused(tokenizer, requests, longest)
    yield from _at_their_places(tokenizer, requests)
    if requests and encode(tokenizer, [requests[0].question])[0].offsets[0] == (0, 0):
        yield "The tokenizer puts a token in front of every text; it stays there and is no part of an edit."


def _refused(tokenizer: Any, requests: Sequence[EditRequest], longest: int | None) -> Iterator[str]:
    """What a run would refuse."""
    if unwritable := _refusals(requests, partial(check_target, tokenizer)):
        edits = counted(len(unwritable), "edit has a subject or a target", "edits have a subject or a target")
        yield f"{edits} that cannot be written: {unwritable[0]}"
    if longest is None:
        return
    tokens = tokenize(tokenizer, [in_context(request, "", request.target_new) for request in requests])
    long = [request for request, found in zip(requests, tokens, strict=True) if len(found.ids) > longest]
    if long:
        are = counted(len(long), "edit is", "edits are")
        yield f"{are} longer than the model's {longest} tokens, the first is {_edit(long[0])}."
    if probes := _refusals(requests, partial(check_probes, tokenizer, max_length=longest)):
        yield f"{counted(len(probes), 'edit has a probe', 'edits have a probe')} that is too long: {probes[0]}"


def _refusals(requests: Sequence[EditRequest], check: Callable[[EditRequest], None]) -> list[UserError]:
    found = []
    for request in requests:
        try:
            check(request)
        except UserError as error:
            found.append(error)
    return found


def _at_their_places(tokenizer: Any, requests: Sequence[EditRequest]) -> Iterator[str]:
    """Subjects that lie where an edit reaches others as well."""
    prompts = [in_context(request, "", request.target_new) for request in requests]
    encoded = encode(tokenizer, [prompt.whole for prompt in prompts])
    first, glued = [], []
    for request, prompt, tokens, entry in zip(requests, prompts, tokenize(tokenizer, prompts), encoded, strict=True):
        if not request.subject:
            continue
        first += [request] if tokens.subject_last == 0 else []
        beyond = prompt.text[prompt.subject_end : entry.offsets[tokens.subject_last][1]]
        glued += [(request, beyond)] if any(map(str.isalnum, beyond)) else []
    if first:
        yield (
            f"{counted(len(first), 'edit has its', 'edits have their')} subject in the text's first token, whose state "
            f"hardly depends on it in many models, the first is {_edit(first[0])}. What is edited there is edited "
            "after a stock opening and holds after other words too, but not at the very beginning of a text: better "
            "put words of your own in front."
        )
    if glued:
        request, beyond = glued[0]
        yield (
            f"{counted(len(glued), 'edit has its', 'edits have their')} subject in one token with what follows it, the "
            f"first is {_edit(request)} with {request.subject + beyond!r}: what is edited there holds before "
            f"{beyond!r} alone. Wordings that go on otherwise, in the field `wordings`, make it hold there too."
        )
