"""Single answers to look at: edits that failed, and the same prompts before and after."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sphere_pl.data.request import EditRequest
from sphere_pl.model.generation import answer_lines, answer_tokens, complete
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.text.joining import asked
from sphere_pl.text.matching import begins_with

SHOWN = 50  # failed edits
CASE_TOKENS = 16
_HALF = "\ufffd"  # what part of a character is decoded to


class Case(NamedTuple):
    """A prompt to show, and what it should be answered with after the edits.

    Attributes:
        prompt: The prompt.
        wanted: The wanted answer; empty for a neighbour whose answer is not known, and shall stay as it is.
        joiner: What stands between both, where the record says so.
    """

    prompt: str
    wanted: str
    joiner: str | None = None


class Asked(NamedTuple):
    """A case, and what counts as right.

    Attributes:
        case: The case.
        kind: `edit`, `paraphrase` or `neighbor`.
        accepted: All right answers; none where the answer shall stay as it is.
    """

    case: Case
    kind: str
    accepted: tuple[str, ...]

    def holds(self, answer: str) -> bool:
        """Whether an answer begins with one that is right."""
        return begins_with(answer, self.accepted)

    def shown(self, before: str, after: str) -> dict[str, Any]:
        """The case with both answers, and whether the later one is as it should be."""
        right = self.holds(after) if self.accepted else after == before
        fields = {"prompt": self.case.prompt, "before": before, "after": after, "wanted": self.case.wanted}
        return {**fields, "kind": self.kind, "right": right}


class Failures(NamedTuple):
    """Edits that failed.

    Attributes:
        listed: What is said of the first of them, by place in the stream.
        places: The places of all, also of those whose free answer was not looked at.
    """

    listed: dict[int, dict[str, str]]
    places: frozenset[int]


def case_prompts(requests: Sequence[EditRequest]) -> list[Case]:
    """For each request its own prompt, its first paraphrase and its first neighbour, as far as it has them."""
    return [asked.case for asked in asked_cases(requests)]


def asked_cases(requests: Sequence[EditRequest]) -> list[Asked]:
    """The same with what counts as right."""
    cases = []
    for request in requests:
        cases.append(asked_fact(request))
        wanted, right, joiner = request.target_new, _accepted(request), request.joiner
        cases += [
            Asked(Case(asked(text, joiner), wanted, joiner), "paraphrase", right) for text in request.paraphrases[:1]
        ]
        answer = next(iter(request.neighbor_answers), "").strip()
        kept = (answer,) if answer else ()
        cases += [Asked(Case(asked(text, joiner), answer, joiner), "neighbor", kept) for text in request.neighbors[:1]]
    return cases


def asked_fact(request: EditRequest) -> Asked:
    """A request's own prompt."""
    return Asked(Case(request.asked, request.target_new, request.joiner), "edit", _accepted(request))


def answer_cases(lm: LanguageModel, cases: Sequence[Case]) -> list[str]:
    """What the model writes after each prompt."""
    return _answered(lm, [(case.prompt, case.joiner, (case.wanted,)) for case in cases])


def answer_facts(lm: LanguageModel, requests: Sequence[EditRequest]) -> list[str]:
    """What the model writes after each request's own prompt."""
    asked = [(each.asked, each.joiner, _accepted(each)) for each in requests]
    return [text for start in range(0, len(asked), SHOWN) for text in _answered(lm, asked[start : start + SHOWN])]


def _answered(lm: LanguageModel, asked: Sequence[tuple[str, str | None, tuple[str, ...]]]) -> list[str]:
    """What the model writes after prompts with their joiners and right answers, none of which is cut off."""
    room = answer_tokens(lm, [text for _, _, right in asked for text in right], CASE_TOKENS)
    joiners, lines = [joiner for _, joiner, _ in asked], [answer_lines(right) for _, _, right in asked]
    return list(map(_whole, complete(lm, [text for text, _, _ in asked], room, joiners=joiners, lines=lines)))


def _whole(answer: str) -> str:
    """An answer without the half of a character that it was cut at."""
    return answer.rstrip(_HALF) or answer


def failed_facts(requests: Sequence[EditRequest], facts: Sequence[Mapping[str, Any]]) -> Failures:
    """The failures among facts that have all been asked; see `Asked.shown`."""
    listed = {
        place: _described(request, fact["after"])
        for place, (request, fact) in enumerate(zip(requests, facts, strict=True))
        if not fact["right"]
    }
    return Failures(listed, frozenset(listed))


def failed_edits(lm: LanguageModel, requests: Sequence[EditRequest]) -> list[dict[str, str]]:
    """Describe failed edits, at most `SHOWN`; see `look_at_failures`."""
    return list(look_at_failures(lm, dict(enumerate(requests))).listed.values())


def look_at_failures(lm: LanguageModel, missed: Mapping[int, EditRequest]) -> Failures:
    """Describe failed edits, at most `SHOWN`.

    Args:
        lm: The edited model.
        missed: Edits that teacher forcing finds failed, by place. One whose freely written answer is right nevertheless
            (its tokens are others) has not failed; when enough are listed the rest is not asked any more.

    Returns:
        `case_id`, `subject`, `prompt`, `wanted` and `given` of each.
    """
    listed: dict[int, dict[str, str]] = {}
    places, asked = list(missed), 0
    for start in range(0, len(places), SHOWN):
        some = places[start : start + SHOWN]
        answers = answer_facts(lm, [missed[place] for place in some])
        asked += len(some)
        listed |= {
            place: _described(missed[place], given)
            for place, given in zip(some, answers, strict=True)
            if not begins_with(given, _accepted(missed[place]))
        }
        if len(listed) >= SHOWN:
            break
    return Failures(dict(list(listed.items())[:SHOWN]), frozenset([*listed, *places[asked:]]))


def _accepted(request: EditRequest) -> tuple[str, ...]:
    return request.target_new, *request.aliases


def _described(request: EditRequest, given: str) -> dict[str, str]:
    return {
        "case_id": request.case_id,
        "subject": request.subject,
        "prompt": request.asked,
        "wanted": request.target_new,
        "given": given,
    }
