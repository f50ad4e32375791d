"""One fact to edit, whatever format it came from, and a batch of them."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from sphere_pl.errors import UserError


class EditRequest(NamedTuple):
    """A fact "(subject, relation, new object)" and the prompts that test it.

    Attributes:
        case_id: The record's own identifier.
        prompt: The relation, with `{}` where the subject goes.
        subject: What the fact is about.
        target_new: What the model shall say after the edit.
        target_true: What it should say before, if known.
        relation_id: Identifier of the relation, if known.
        paraphrases: Other wordings of the same question, subject filled in (generalization).
        neighbors: Prompts about other subjects whose answer must not change (specificity).
        neighbor_answers: The right answer of each neighbour, empty if unknown.
        generation: Prompts for free text about the subject.
        source: File and line the record came from, for messages.
        target_id: Identifier of the new object, if known; reference texts are found by it.
        aliases: Other answers that say the same as `target_new`.
        portability: Questions whose answer follows from the edit (reasoning, other names of the subject).
        portability_answers: What counts as right for each of them, the reference answer first.
    """

    case_id: str
    prompt: str
    subject: str
    target_new: str
    target_true: str | None = None
    relation_id: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighbors: tuple[str, ...] = ()
    neighbor_answers: tuple[str, ...] = ()
    generation: tuple[str, ...] = ()
    source: str = ""
    target_id: str | None = None
    aliases: tuple[str, ...] = ()
    portability: tuple[str, ...] = ()
    portability_answers: tuple[tuple[str, ...], ...] = ()

    @property
    def question(self) -> str:
        """The prompt with the subject filled in."""
        return self.prompt.replace("{}", self.subject, 1)

    @property
    def subject_end(self) -> int:
        """Number of characters of `question` up to and including the subject."""
        return self.prompt.index("{}") + len(self.subject)


class EditBatch(NamedTuple):
    """The requests that one step edits together.

    Attributes:
        requests: In the order of the stream.
        start: How many requests of the stream come before them.
        again: Where in the stream they are, if they have been edited before and are edited again.
    """

    requests: tuple[EditRequest, ...]
    start: int = 0
    again: tuple[int, ...] = ()

    @property
    def places(self) -> tuple[int, ...]:
        """Where each request is in the stream."""
        return self.again or tuple(range(self.start, self.start + len(self.requests)))

    @property
    def edits(self) -> int:
        """How many requests of the stream have been edited when the batch is done."""
        return self.start if self.again else self.start + len(self.requests)


def shorten(value: object, width: int = 80) -> str:
    """Quote what the user gave, cut where it would fill the screen.

    Example:
        >>> shorten("Paris"), shorten("a" * 100, width=5)
        ("'Paris'", "'aaaaa'... (100 characters)")
    """
    text = value if isinstance(value, str) else str(value)
    return repr(text) if len(text) <= width else f"{text[:width]!r}... ({len(text)} characters)"


def blank_subject(prompt: str, subject: str) -> str:
    """Put `{}` where the subject stands last, preferably as a whole word; the prompt itself if it is not there.

    The last place is the one to edit at: only there has the model read everything that comes before. Filled in again,
    the prompt reads as before, so other mentions of the subject stay in it as they are.

    Example:
        >>> blank_subject("Is Al also in Al's book, also?", "Al")
        "Is Al also in {}'s book, also?"
    """
    if not subject or subject not in prompt:
        return prompt
    place = prompt.rindex(subject)
    if prompt.index(subject) != place:
        whole = [match.start() for match in re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt)]
        place = whole[-1] if whole else place
    return f"{prompt[:place]}{{}}{prompt[place + len(subject) :]}"


def check_request(request: EditRequest) -> EditRequest:
    """Check one request and return it with surrounding spaces removed.

    A prompt without `{}` that contains the subject gets its `{}` at the subject's last occurrence.

    Raises:
        UserError: Naming the source, what is wrong and what is expected.

    Example:
        >>> check_request(EditRequest("0", "Paris is the capital of", "Paris", " Italy")).prompt
        '{} is the capital of'
    """
    where = request.source or f"case {request.case_id}"
    subject, target = request.subject.strip(), request.target_new.strip()
    prompt = request.prompt.strip()
    if not subject:
        raise UserError(f"{where}: the subject is empty. Expected the name of what the fact is about.")
    if not target:
        raise UserError(f"{where}: target_new is empty. Expected the text that the model shall say after the edit.")
    if "{}" not in prompt:
        prompt = blank_subject(prompt, subject)
    if prompt.count("{}") != 1:
        raise UserError(
            f"{where}: the prompt {shorten(request.prompt)} does not contain the subject {shorten(subject)} or exactly "
            "one '{}' in its place. Expected for example 'The capital of {} is'."
        )
    if "{" in prompt.replace("{}", "") or "}" in prompt.replace("{}", ""):
        raise UserError(
            f"{where}: the prompt {shorten(request.prompt)} has stray braces. Expected one '{{}}' for the subject and "
            "no other brace; write braces that belong to the text in another way."
        )
    _check_texts(where, request)
    return request._replace(prompt=prompt, subject=subject, target_new=target)


def _check_texts(where: str, request: EditRequest) -> None:
    """Refuse half characters, which no tokenizer takes, and probes that cannot be asked."""
    for text in _texts(request):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{where}: {shorten(text)} holds half a character (a lone surrogate) at place {error.start}. Write the "
                "file as UTF-8 again from its source."
            ) from error
    for prompts in (request.paraphrases, request.neighbors, request.generation, request.portability):
        if not all(prompt.strip() for prompt in prompts):
            raise UserError(f"{where}: a paraphrase, neighbour or other probe is empty. Leave it out of its list.")


def _texts(request: EditRequest) -> Iterator[str]:
    for value in request:
        for part in (value,) if isinstance(value, str) else value or ():
            yield from (part,) if isinstance(part, str) else part
