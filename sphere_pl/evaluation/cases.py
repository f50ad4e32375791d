"""Single answers to look at: edits that failed, and the same prompts before and after."""

from collections.abc import Sequence
from typing import NamedTuple

from sphere_pl.data.request import EditRequest
from sphere_pl.evaluation.metrics.texts import begins_with
from sphere_pl.model.generation import answer_tokens, complete
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.text.joining import asked

SHOWN = 50  # failed edits
CASE_TOKENS = 16


class Case(NamedTuple):
    """A prompt to show, and what it should be answered with after the edits."""

    prompt: str
    wanted: str


def case_prompts(requests: Sequence[EditRequest]) -> list[Case]:
    """For each request its own prompt, its first paraphrase and its first neighbour, as far as it has them."""
    cases = []
    for request in requests:
        cases.append(Case(request.asked, request.target_new))
        cases += [Case(asked(text, request.joiner), request.target_new) for text in request.paraphrases[:1]]
        answers = request.neighbor_answers or ("",)
        cases += [Case(asked(text, request.joiner), answers[0].strip()) for text in request.neighbors[:1]]
    return cases


def answer_cases(lm: LanguageModel, cases: Sequence[Case]) -> list[str]:
    """What the model writes after each prompt."""
    return complete(lm, [case.prompt for case in cases], CASE_TOKENS)


def failed_edits(lm: LanguageModel, requests: Sequence[EditRequest]) -> list[dict[str, str]]:
    """Describe failed edits, at most `SHOWN`.

    Args:
        lm: The edited model.
        requests: Edits that teacher forcing finds failed. One whose freely written answer is right nevertheless (its
            tokens are others) is left out.

    Returns:
        `case_id`, `subject`, `prompt`, `wanted` and `given` of each.
    """
    failed: list[dict[str, str]] = []
    for start in range(0, len(requests), SHOWN):
        some = requests[start : start + SHOWN]
        longest = answer_tokens(lm, [text for each in some for text in (each.target_new, *each.aliases)])
        answers = complete(lm, [each.asked for each in some], max(CASE_TOKENS, longest))
        failed += [
            {
                "case_id": each.case_id,
                "subject": each.subject,
                "prompt": each.asked,
                "wanted": each.target_new,
                "given": given,
            }
            for each, given in zip(some, answers, strict=True)
            if not begins_with(given, (each.target_new, *each.aliases))
        ]
        if len(failed) >= SHOWN:
            break
    return failed[:SHOWN]
