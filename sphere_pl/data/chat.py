"""The chat form of a question: as the user's turn of the tokenizer's own template."""

from typing import Any, Literal, NamedTuple

from jinja2.exceptions import TemplateError

from sphere_pl.data.request import Form, shorten
from sphere_pl.errors import UserError

# No template changes them, whatever it does to white space and brackets.
_QUESTION, _ANSWER = "The-question-goes-here", "The-answer-goes-here"


Chat = Literal["plain", "chat", "both"]


class ChatSettings(NamedTuple):
    """In which form facts are edited and scored.

    Attributes:
        mode: Edited in plain form, in chat form, or in both.
        system: The system prompt; the template's own, should it have one, if None.
    """

    mode: Chat = "plain"
    system: str | None = None

    def forms(self, tokenizer: Any) -> tuple[Form, ...]:
        """The forms to edit in.

        Raises:
            UserError: If a chat form is asked of a tokenizer that has none.
        """
        if self.mode == "plain":
            return (Form(),)
        form = chat_form(tokenizer, self.system)
        return (form,) if self.mode == "chat" else (Form(), form)

    def scored(self, tokenizer: Any) -> Form | None:
        """The chat form to score in beside the plain one; None where there is none."""
        if self.mode != "plain" or self.system is not None:
            return chat_form(tokenizer, self.system)
        try:
            return chat_form(tokenizer) if has_template(tokenizer) else None
        except UserError:  # a template that is not asked for is no reason to refuse a run
            return None


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def chat_form(tokenizer: Any, system: str | None = None) -> Form:
    """What the tokenizer's template puts around a question that the model is to answer.

    Args:
        tokenizer: A Hugging Face tokenizer.
        system: The system prompt; if None the template's own, should it have one.

    Raises:
        UserError: If there is no template, or it does not take the system prompt, or does not hold the question once.
    """
    if not has_template(tokenizer):
        raise UserError(
            "`data.chat` asks facts as a chat model is asked, but this model's tokenizer has no chat template. Choose "
            "--data.chat=plain, or a model that was tuned for chat."
        )
    try:
        text = _filled_in(tokenizer, system)
    except (TemplateError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        advice = "leave out --data.system, or choose --data.chat=plain" if system is not None else "choose plain"
        raise UserError(f"The tokenizer's chat template cannot be filled in ({reason}): {advice}.") from error
    if text.count(_QUESTION) != 1 or (system is not None and system.strip() not in text):
        lost = "the question once" if text.count(_QUESTION) != 1 else f"the system prompt {shorten(system)}"
        raise UserError(f"The tokenizer's chat template does not hold {lost}. Choose --data.chat=plain.")
    before, _, after = text.partition(_QUESTION)
    keeps = _filled_in(tokenizer, system, question=f"{_QUESTION} \n") != text
    return Form(_without_added(tokenizer, before), after, _joiner(tokenizer, system, text), keeps)


def _filled_in(tokenizer: Any, system: str | None, question: str = _QUESTION, answer: str | None = None) -> str:
    """The template with a question, and with an answer to it if there is one."""
    turns = [] if system is None else [{"role": "system", "content": system}]
    turns.append({"role": "user", "content": question})
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None))


def _joiner(tokenizer: Any, system: str | None, asked: str) -> str:
    """The white space that the template puts between a question and its answer: a space in Llama 2's and Mistral's."""
    try:
        text = _filled_in(tokenizer, system, answer=_ANSWER)
    except (TemplateError, TypeError, ValueError):  # one that takes no answers
        return ""
    between, found, _ = text.removeprefix(asked).partition(_ANSWER)
    return between if found and text.startswith(asked) and between.isspace() else ""


def _without_added(tokenizer: Any, before: str) -> str:
    """The beginning without the token that marks it, where the tokenizer puts that in front of every text itself."""
    begin = tokenizer.bos_token
    adds = begin is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return before.removeprefix(begin) if adds else before
