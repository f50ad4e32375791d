"""What became of each fact, not only of their mean: two runs on the same facts are compared fact by fact."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
from typing_extensions import override

from sphere_pl.data.request import EditRequest
from sphere_pl.evaluation.answers import Answers, answer_requests
from sphere_pl.evaluation.scoring import Answer
from sphere_pl.model.generation import answer_tokens, complete
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.process.failures import doing
from sphere_pl.run.editor_callback import EditorCallback
from sphere_pl.run.evaluated_weights import evaluated_weights
from sphere_pl.text.matching import begins_with

HIT, MISS, UNASKED = "+", "-", " "
_TOGETHER = 100  # records asked in one go


class FactOutcomes(EditorCallback):
    """Asks every fact at the end of a run and leaves one sign a fact, in the order of the stream.

    `+` is a prompt that holds, `-` one that does not, a blank a record without such a prompt; the first prompt of each
    kind counts. `written` are answers written freely that begin with the new object, after the fact's own prompt and
    after a paraphrase; `own`, `paraphrase` and `neighbor` are teacher-forced, the neighbour against the unedited model.
    """

    summary_name = "outcomes"

    def __init__(self) -> None:
        self._found: dict[str, str] = {}

    @override
    @doing("asking for each fact")
    def on_fit_end(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Ask the edited model."""
        edited = self.editor.evaluator.requests[: self.editor.edits_seen]
        with evaluated_weights(trainer, self.editor):
            self._found = outcomes(self.editor.language_model, edited, self.editor.scores.unedited_answers)

    @override
    def summary(self) -> dict[str, Any]:
        """The signs, a string for each kind of prompt."""
        return self._found


def outcomes(
    lm: LanguageModel, requests: Sequence[EditRequest], unedited: dict[int, list[list[int]]]
) -> dict[str, str]:
    """Ask a model for each fact.

    Args:
        lm: The language model.
        requests: The facts.
        unedited: Tokens that the unedited model answers to the neighbours of each fact, by its place.

    Returns:
        A string of one sign a fact for `written`, `written_paraphrase`, `own`, `paraphrase` and `neighbor`.
    """
    answered: list[Answers] = []
    for start in range(0, len(requests), _TOGETHER):
        answered += answer_requests(lm, requests[start : start + _TOGETHER])
    kept = [
        _first([a.predicted == before for a, before in zip(each.neighbors, unedited.get(place, ()), strict=False)])
        for place, each in enumerate(answered)
    ]
    return {
        "written": _written(lm, requests, lambda each: each.asked),
        "written_paraphrase": _written(lm, requests, lambda each: next(iter(each.paraphrases), None)),
        "own": "".join(_first(_right(each.rewrite)) for each in answered),
        "paraphrase": "".join(_first(_right(each.paraphrases)) for each in answered),
        "neighbor": "".join(kept),
    }


def _written(lm: LanguageModel, requests: Sequence[EditRequest], prompt: Callable[[EditRequest], str | None]) -> str:
    """Whether what the model writes after a prompt of each fact begins with the new object or an alias of it."""
    asked = [(each, text) for each in requests if (text := prompt(each)) is not None]
    accepted = [(each.target_new, *each.aliases) for each, _ in asked]
    room = max((answer_tokens(lm, each) for each in accepted), default=1)
    texts = complete(lm, [text for _, text in asked], room, joiners=[each.joiner for each, _ in asked])
    hits = iter([begins_with(text, right) for text, right in zip(texts, accepted, strict=True)])
    return "".join(UNASKED if prompt(each) is None else _first([next(hits)]) for each in requests)


def _right(answers: Sequence[Answer]) -> list[bool]:
    return [each.predicted == each.target for each in answers]


def _first(hits: Sequence[bool]) -> str:
    return (HIT if hits[0] else MISS) if hits else UNASKED
