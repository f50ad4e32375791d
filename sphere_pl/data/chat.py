"""The chat form of a question: as the user's turn of the tokenizer's own template."""

import re
from typing import Any, Literal, NamedTuple

from jinja2.exceptions import TemplateError

from sphere_pl.data.request import Form, shorten
from sphere_pl.errors import UserError

_THOUGHT = re.compile(r"<([a-z:_]*think[a-z]*)>\s*\Z")  # `<think>`, `<seed:think>`, at the end
_SWITCH = "enable_thinking"  # as Qwen3, SmolLM3, GLM 4.5 and Hunyuan call it
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

    A fact is an answer and no thought: where a template knows of thinking it is switched off, and a thought that is
    opened all the same is closed. What the template writes in front of an answer, such as an empty thought or the name
    of a channel, stands in front of this one.

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
    opening = _opening(tokenizer, system, text)
    joiner = opening if opening.isspace() else ""
    return Form(
        _without_added(tokenizer, before), _without_thought(after + opening.removeprefix(joiner)), joiner, keeps
    )


def _filled_in(tokenizer: Any, system: str | None, question: str = _QUESTION, answer: str | None = None) -> str:
    """The template with a question, and with an answer to it if there is one."""
    turns = [] if system is None else [{"role": "system", "content": system}]
    turns.append({"role": "user", "content": question})
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    # By what the template says: tokenizers that are not Hugging Face's own refuse what they do not know.
    options = {_SWITCH: False} if _SWITCH in str(tokenizer.chat_template) else {}
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None, **options))


def _opening(tokenizer: Any, system: str | None, asked: str) -> str:
    """What the template puts between a question and its answer: a space in Llama 2's and Mistral's, mostly nothing."""
    try:
        text = _filled_in(tokenizer, system, answer=_ANSWER)
    except (TemplateError, TypeError, ValueError):  # one that takes no answers
        return ""
    between, found, _ = text.removeprefix(asked).partition(_ANSWER)
    return between if found and text.startswith(asked) else ""


def _without_thought(after: str) -> str:
    r"""The end of a template, with the thought closed that it opens: what follows is the answer.

    Example:
        >>> _without_thought("<|Assistant|><think>\n"), _without_thought("<|Assistant|>")
        ('<|Assistant|><think>\n\n</think>\n\n', '<|Assistant|>')
    """
    opened = _THOUGHT.search(after)
    return f"{after.rstrip()}\n\n</{opened[1]}>\n\n" if opened else after


def _without_added(tokenizer: Any, before: str) -> str:
    """The beginning without the token that marks it, where the tokenizer puts that in front of every text itself."""
    begin = tokenizer.bos_token
    adds = begin is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return before.removeprefix(begin) if adds else before
