"""How a fact that somebody types is read: what joins its parts, and which tokens they become."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sphere_pl.commands.check import pieces
from sphere_pl.data.datamodule import FactList
from sphere_pl.data.request import EditRequest
from sphere_pl.errors import UserError
from sphere_pl.evaluation.made_neighbors import made_prompts
from sphere_pl.model.token_checks import check_target
from sphere_pl.model.tokens import in_context, tokenize

_NEEDED = {
    "prompt": "give the question, with {} or the subject in it",
    "subject": "give what it is about, at whose tokens the model is edited",
    "target": "give the answer that the model shall give",
}
_NEIGHBORS = 2  # made for a fact that names none


class Reading(NamedTuple):
    """A fact as the model will see it.

    Attributes:
        text: The question.
        between: What stands between question and answer.
        target: The answer.
        pieces: The answer's tokens as texts; those of one character together.
        target_tokens: How many tokens it has.
        subject: The subject; empty if there is none.
        subject_tokens: How many tokens it has; the last of them is where methods edit.
        neighbors: Prompts on which side effects will be looked for.
    """

    text: str
    between: str
    target: str
    pieces: list[str]
    target_tokens: int
    subject: str
    subject_tokens: int
    neighbors: list[str]


def read_fact(fact: Mapping[str, Any]) -> EditRequest:
    """A fact with the fields of format `jsonl`.

    Raises:
        UserError: If a part is missing or not what it must be.
    """
    for name, what in _NEEDED.items():
        if not str(fact.get(name) or "").strip():
            raise UserError(f"The fact has no {name}: {what}.")
    given = {name: value for name, value in fact.items() if value}
    try:
        (request,) = FactList([given], name="jsonl", path="the fact").everything()
    except UserError as error:
        raise UserError(str(error).removeprefix("facts[0]: ")) from error
    return request


def read_closely(tokenizer: Any, request: EditRequest, others: Sequence[EditRequest]) -> Reading:
    """How a fact joins and what its tokens are.

    Raises:
        UserError: If the tokenizer cannot write the subject or the answer.
    """
    check_target(tokenizer, request)
    prompt = in_context(request, "", request.target_new)
    (tokens,) = tokenize(tokenizer, [prompt])
    between = prompt.whole[len(prompt.text) : len(prompt.whole) - len(prompt.target)]
    length = tokens.subject_last + 1 - tokens.subject_first
    found, neighbors = list(pieces(tokenizer, tokens.target)), neighbors_of(request, others)
    count = len(tokens.target)
    return Reading(prompt.text, between, request.target_new, found, count, request.subject, length, neighbors)


def neighbors_of(request: EditRequest, others: Sequence[EditRequest]) -> list[str]:
    """The fact's own neighbours, else its prompt with other subjects."""
    if request.neighbors:
        return list(request.neighbors)
    return made_prompts([request, *others], _NEIGHBORS, 0).get(0, [])
