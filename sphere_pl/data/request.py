"""One fact to edit, whatever format it came from, and a batch of them."""

import re
import unicodedata
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import NamedTuple

from sphere_pl.errors import UserError
from sphere_pl.text.joining import asked
from sphere_pl.text.scripts import is_later_jamo, is_mark

_BROKEN = "\ufffd"  # what stands where bytes were no text
# Signs of print for those that a keyboard has; each stands for one.
_TYPED = str.maketrans("’‘ʼ′“”„″‐‑‒–—−", "''''" + '"' * 4 + "-" * 6)
_UNSEEN = ("Cc", "Cf", "Zl", "Zp", "Zs")  # categories of characters that leave no mark of their own


class Form(NamedTuple):
    """What stands around a question when it is asked: nothing, or what a chat template puts there.

    Attributes:
        before: In front of the question and of any context.
        after: After it.
        joiner: What stands between that and the answer, where the template has put a question: mostly nothing.
        keeps: Whether the template keeps white space that ends a question, which many leave out.
    """

    before: str = ""
    after: str = ""
    joiner: str = ""
    keeps: bool = False

    def around(self, question: str) -> str:
        r"""A question as it is asked in this form.

        Example:
            >>> Form("[user]", "[assistant]").around("Where is Rome?\n")
            '[user]Where is Rome?[assistant]'
        """
        return self.before + (question if self.keeps or not self.after else question.rstrip()) + self.after


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
        joiner: White space or nothing that stands between each prompt and its answer; what the scripts demand if None.
        wordings: Further prompts, with `{}` where the subject goes, that are edited together with `prompt`.
        form: What stands around the question; nothing in the stream, a chat template where it is asked in one.
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
    joiner: str | None = None
    wordings: tuple[str, ...] = ()
    form: Form = Form()

    @property
    def question(self) -> str:
        """The prompt with the subject filled in."""
        return self.prompt.replace("{}", self.subject, 1) if self.subject else self.prompt

    @property
    def subject_span(self) -> tuple[int, int]:
        """Where in `question` the subject begins and ends; both 0 in a request without a subject."""
        start = self.prompt.index("{}") if self.subject else 0
        return start, start + len(self.subject)

    @property
    def asked(self) -> str:
        """The question in its form, as the model is asked it."""
        return self.form.around(self.question)

    @property
    def subject_end(self) -> int:
        """Number of characters of `question` up to and including the subject."""
        return self.subject_span[1]


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


def mark_subject(prompt: str, subject: str) -> str:
    """A prompt of a format whose prompts name their subject, as `check_request` is to see it.

    It takes braces in such a prompt for text. One that holds `{}` is marked at its subject: unless that is what holds
    it, there are two places then, and the prompt is refused.

    Example:
        >>> mark_subject("The {x} of Al is", "Al"), mark_subject("The type Box<{}> is", "Box<{}>")
        ('The {x} of Al is', 'The type {} is')
    """
    return blank_subject(prompt, subject) if "{}" in prompt else prompt


def has_stray_braces(template: str) -> bool:
    """Whether a prompt with `{}` in its subject's place holds other braces."""
    return bool(set("{}") & set(template.replace("{}", "", 1)))


def find_alike(prompt: str, subject: str) -> tuple[int, int] | None:
    """Where a subject stands in a prompt that writes it in other code points, last: composed, or with another space.

    Quotation marks, apostrophes and dashes of print stand for those of a keyboard.

    Example:
        >>> find_alike("Near Sa\u0303o Paulo is", "São Paulo"), find_alike("The Boeing\u00a0747", "Boeing 747")
        ((5, 15), (4, 14))
    """
    wanted = _typed(subject)
    starts = [place for place, each in enumerate(prompt) if place == 0 or not _attaches(each)]
    pieces = list(pairwise([*starts, len(prompt)]))
    normal = [_typed(prompt[start:stop]) for start, stop in pieces]
    text = "".join(normal)
    place = text.rfind(wanted) if wanted else -1
    if place < 0:
        return None
    borders = [0, *accumulate(map(len, normal))]
    if place not in borders or place + len(wanted) not in borders:
        return None
    return pieces[borders.index(place)][0], pieces[borders.index(place + len(wanted)) - 1][1]


def _typed(text: str) -> str:
    """A text in normal form, with the signs of a keyboard."""
    return unicodedata.normalize("NFKC", text.translate(_TYPED)).translate(_TYPED)


def _attaches(character: str) -> bool:
    """Whether a character is one with the one before it in normal form: an accent, the end of a Korean syllable."""
    return is_mark(character) or is_later_jamo(character)


def check_request(request: EditRequest) -> EditRequest:
    """Check one request and return it as it is asked: without space around subject and target.

    White space that ends the prompt belongs to it, but for the one space that the target brings along. White space in
    front of the target is the request's joiner if it is more than a space. A prompt without `{}` that contains the
    subject gets its `{}` at the subject's last occurrence, also where it writes the subject in other code points; all
    other braces in it are text.

    Raises:
        UserError: Naming the source, what is wrong and what is expected.

    Example:
        >>> check_request(EditRequest("0", "Paris is the capital of", "Paris", " Italy")).prompt
        '{} is the capital of'
    """
    where = request.source or f"case {request.case_id}"
    target = request.target_new.strip()
    if not target:
        raise UserError(f"{where}: target_new is empty. Expected the text that the model shall say after the edit.")
    _check_seen(where, "target_new", target, "the text that the model shall say after the edit")
    if request.joiner is not None and request.joiner.strip():
        raise UserError(
            f"{where}: the joiner is {shorten(request.joiner)}. It is what stands between prompt and target: white "
            "space, or nothing. Write other text at the prompt's end."
        )
    request = request._replace(target_new=target, joiner=_joiner(request, target))
    request = _blanked(where, request) if request.subject.strip() else _without_subject(where, request)
    _check_texts(where, request)
    question = request.question
    shorter = len(question) - len(asked(question, request.joiner))
    prompt = request.prompt[: len(request.prompt) - shorter].lstrip()
    if not prompt:
        raise UserError(f"{where}: the prompt is empty. Expected for example 'The capital of {{}} is'.")
    return request._replace(prompt=prompt)


def _check_seen(where: str, name: str, text: str, expected: str) -> None:
    if all(unicodedata.category(each) in _UNSEEN for each in text):
        raise UserError(f"{where}: {name} is {shorten(text)}, of which nothing can be seen. Expected {expected}.")


def _joiner(request: EditRequest, target: str) -> str | None:
    """The request's own joiner, or the white space in front of its target; one space there says nothing."""
    before = request.target_new[: request.target_new.index(target)]
    return before if request.joiner is None and before not in ("", " ") else request.joiner


def _without_subject(where: str, request: EditRequest) -> EditRequest:
    if "{}" in request.prompt:
        raise UserError(
            f"{where}: the subject is empty, and the prompt {shorten(request.prompt)} has a place for it. Expected the "
            "name of what the fact is about."
        )
    return request._replace(subject="")


def _blanked(where: str, request: EditRequest) -> EditRequest:
    """The request with `{}` where its subject stands, and the subject as the prompt writes it."""
    subject, prompt = request.subject.strip(), request.prompt
    _check_seen(where, "the subject", subject, "the name of what the fact is about")
    if "{}" not in prompt:
        prompt, subject = _blank_alike(prompt, subject)
    if prompt.count("{}") != 1:
        raise UserError(
            f"{where}: the prompt {shorten(request.prompt)} does not contain the subject {shorten(subject)} or exactly "
            f"one '{{}}' in its place. Expected for example 'The capital of {{}} is'.{_nearly(prompt, subject)}"
        )
    if "{}" in request.prompt and has_stray_braces(prompt):
        raise UserError(
            f"{where}: the prompt {shorten(request.prompt)} has stray braces. Expected one '{{}}' for the subject and "
            "no other brace. If they belong to the text, write the subject itself in the place of '{}'."
        )
    wordings = tuple(_blank_wording(where, wording, subject) for wording in request.wordings)
    return request._replace(prompt=prompt, subject=subject, wordings=wordings)


def _blank_alike(prompt: str, subject: str) -> tuple[str, str]:
    """A prompt with `{}` where its subject stands, in these code points or in others, and the subject as it has it."""
    blank = blank_subject(prompt, subject)
    place = find_alike(prompt, subject) if blank == prompt else None
    if place is None:
        return blank, subject
    return f"{prompt[: place[0]]}{{}}{prompt[place[1] :]}", prompt[slice(*place)]


def _nearly(prompt: str, subject: str) -> str:
    """What is said where a prompt holds something that looks like its subject."""
    place = prompt.casefold().find(subject.casefold())
    if place >= 0 and len(prompt.casefold()) == len(prompt):
        return f" It holds {shorten(prompt[place : place + len(subject)])}: write the subject as the prompt does."
    odd = [each for each in prompt + subject if unicodedata.category(each) in ("Cf", "Cc", "Zs") and each != " "]
    if odd:
        named = ", ".join(f"U+{ord(each):04X}" for each in dict.fromkeys(odd[:4]))
        return f" Between them they hold signs that cannot be seen ({named}): take them out."
    return ""


def _blank_wording(where: str, wording: str, subject: str) -> str:
    """A further wording with `{}` where its subject stands; it is asked with the subject as the prompt writes it."""
    blank = wording.lstrip() if "{}" in wording else _blank_alike(wording.lstrip(), subject)[0]
    if blank.count("{}") != 1 or ("{}" in wording and has_stray_braces(blank)):
        raise UserError(
            f"{where}: the wording {shorten(wording)} does not contain the subject {shorten(subject)} or exactly one "
            "'{}' in its place. A fact is edited where its subject stands: name it, or make the wording a paraphrase."
        )
    return asked(blank)


def learn_paraphrases(request: EditRequest, count: int) -> EditRequest:
    """Make the first paraphrases that name the subject wordings, which are edited; the others stay for scoring.

    Example:
        >>> request = EditRequest("0", "{} is in", "Rome", "Spain", paraphrases=("It lies in", "Where is Rome? In"))
        >>> learned = learn_paraphrases(request, 1)
        >>> learned.wordings, learned.paraphrases
        (('Where is {}? In',), ('It lies in',))
    """
    plain = [text for text in request.paraphrases if "{}" not in text]
    blank = {text: _blank_alike(asked(text.lstrip(), request.joiner), request.subject)[0] for text in plain}
    able = [text for text in plain if "{}" in blank[text]][:count]
    wordings = tuple(blank[text] for text in able)
    left = tuple(text for text in request.paraphrases if text not in able)
    return request._replace(wordings=request.wordings + wordings, paraphrases=left)


def _check_texts(where: str, request: EditRequest) -> None:
    """Refuse half and broken characters, which nobody has meant, and probes that cannot be asked."""
    for text in _texts(request):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{where}: {shorten(text)} holds half a character (a lone surrogate) at place {error.start}. Write the "
                "file as UTF-8 again from its source."
            ) from error
    if _BROKEN in request.target_new or _BROKEN in request.question:
        raise UserError(
            f"{where}: the record holds U+FFFD, which stands where a text could not be read: "
            f"{shorten(request.question)} -> {shorten(request.target_new)}. Write the file as UTF-8 again from its "
            "source."
        )
    lists = (request.paraphrases, request.neighbors, request.generation, request.portability, request.wordings)
    for prompts in lists:
        if not all(prompt.strip() for prompt in prompts):
            raise UserError(f"{where}: a paraphrase, neighbour or other probe is empty. Leave it out of its list.")


def _texts(request: EditRequest) -> Iterator[str]:
    """Those that the record gives; a form is none of its own."""
    for value in request:
        parts = (value,) if isinstance(value, str) else () if isinstance(value, Form) else value or ()
        for part in parts:
            yield from (part,) if isinstance(part, str) else part
