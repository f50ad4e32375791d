"""What a request must be to be edited, and how it is brought into the form in which it is asked."""

import unicodedata
from collections.abc import Iterator

from sphere_pl.data.request import EditRequest, Form, shorten
from sphere_pl.data.subject import blank_alike, has_stray_braces
from sphere_pl.errors import UserError
from sphere_pl.text.joining import asked

_BROKEN = "\ufffd"  # what stands where bytes were no text
_UNSEEN = ("Cc", "Cf", "Zl", "Zp", "Zs")  # categories of characters that leave no mark of their own


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
        prompt, subject = blank_alike(prompt, subject)
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
    blank = wording.lstrip() if "{}" in wording else blank_alike(wording.lstrip(), subject)[0]
    if blank.count("{}") != 1 or ("{}" in wording and has_stray_braces(blank)):
        raise UserError(
            f"{where}: the wording {shorten(wording)} does not contain the subject {shorten(subject)} or exactly one "
            "'{}' in its place. A fact is edited where its subject stands: name it, or make the wording a paraphrase."
        )
    return asked(blank)


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


def learn_paraphrases(request: EditRequest, count: int) -> EditRequest:
    """Make the first paraphrases that name the subject wordings, which are edited; the others stay for scoring.

    Example:
        >>> request = EditRequest("0", "{} is in", "Rome", "Spain", paraphrases=("It lies in", "Where is Rome? In"))
        >>> learned = learn_paraphrases(request, 1)
        >>> learned.wordings, learned.paraphrases
        (('Where is {}? In',), ('It lies in',))
    """
    plain = [text for text in request.paraphrases if "{}" not in text]
    blank = {text: blank_alike(asked(text.lstrip(), request.joiner), request.subject)[0] for text in plain}
    able = [text for text in plain if "{}" in blank[text]][:count]
    wordings = tuple(blank[text] for text in able)
    left = tuple(text for text in request.paraphrases if text not in able)
    return request._replace(wordings=request.wordings + wordings, paraphrases=left)
