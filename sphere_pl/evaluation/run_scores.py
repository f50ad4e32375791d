"""What a run has measured so far, from the unedited model to the last validation."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sphere_pl.data.request import EditRequest
from sphere_pl.evaluation.cases import Failures, look_at_failures
from sphere_pl.evaluation.evaluator import Evaluator
from sphere_pl.evaluation.kept_unedited import Measured, keep_measured, read_measured
from sphere_pl.evaluation.made_neighbors import MadeNeighbor
from sphere_pl.evaluation.outcomes import Cause, Learned, ask_targets
from sphere_pl.evaluation.sample import ScoringBatch
from sphere_pl.evaluation.scored import Scores, from_plain, to_plain
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.process.failures import doing
from sphere_pl.progress import Track

_PLAIN = ("unedited_answers", "unedited_cases", "unedited_facts", "unedited_opening", "cases")
_SCORES = ("before", "after")


class RunScores:
    """Keeps what an evaluator measures; a checkpoint holds it.

    Args:
        evaluator: Measures.

    Attributes:
        before: Scores of the unedited model.
        after: Those of the last validation.
        unedited_answers: The unedited model's answers to the neighbours of each request, by place in the stream.
        unedited_cases: What it writes after the prompts of the cases.
        unedited_facts: What it writes after each request's own prompt; empty in a run of many.
        unedited_opening: Its perplexity on the opening of the held-out text; None if it was not measured.
        failures: Edits that the model does not answer as wanted at the end; None before that.
        cases: The cases' prompts with the answers before and after.
        facts: Each request's own prompt with the answers before and after; empty in a run of many.
        causes_found: Why an edit will not hold, as far as that is known before the end, such as a shared key; by place.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.before: Scores = {}
        self.after: Scores = {}
        self.unedited_answers: dict[int, list[list[int]]] = {}
        self.unedited_cases: list[str] = []
        self.unedited_facts: list[str] = []
        self.unedited_opening: float | None = None
        self.failures: Failures | None = None
        self.cases: list[dict[str, Any]] = []
        self.facts: list[dict[str, Any]] = []
        self.causes_found: dict[int, Cause] = {}

    @doing("measuring the unedited model")
    def measure_unedited(
        self,
        lm: LanguageModel,
        requests: Sequence[EditRequest],
        track: Track,
        inherited: int = 0,
        path: Path | None = None,
        agree: Callable[[Measured | None], Measured | None] = lambda known: known,
    ) -> None:
        """Score the unedited model on all requests that will be scored, and keep its answers.

        Args:
            lm: The unedited language model.
            requests: The requests of the run.
            track: Shows progress.
            inherited: How many of them, the first, an earlier run has edited.
            path: Where the same may have been kept by another run, and is kept for the next; nowhere if None.
            agree: Gives every process what the first one knows: where one asks all must, since scores are summed.
        """
        self.evaluator.plan(requests, inherited)
        known = agree(None if path is None else read_measured(path))
        if known is None:
            found = self.evaluator.measure_unedited(lm, requests, track, inherited)
            known = found._replace(opening=self.evaluator.opening(lm, found.scores)), self.evaluator.made
            if path is not None:
                keep_measured(known, path)
        unedited, self.evaluator.made = known
        self.before, self.unedited_answers, self.unedited_cases = unedited[:3]
        self.unedited_facts, self.unedited_opening = unedited.facts, unedited.opening

    @doing("asking for the edits of the batch")
    def ask_batch(self, lm: LanguageModel, requests: Sequence[EditRequest], places: Sequence[int]) -> list[Learned]:
        """How likely each target of the batch just edited is on the edited model."""
        learned = ask_targets(lm, requests)
        self.evaluator.learned |= dict(zip(places, learned, strict=True))
        return learned

    @doing("looking for failed edits")
    def failing(self, lm: LanguageModel, edits: int) -> list[int]:
        """Places of the edits so far that neither teacher forcing nor a free answer finds right."""
        requests, size = self.evaluator.requests[:edits], self.evaluator.settings.batch_size
        parts = [ask_targets(lm, requests[start : start + size]) for start in range(0, edits, size)]
        learned = [each for part in parts for each in part]
        missed = {place: requests[place] for place, each in enumerate(learned) if not each.right}
        return sorted(look_at_failures(lm, missed).places)

    def forget(self, places: Sequence[int]) -> None:
        """Forget how edits stood that are edited again."""
        for place in places:
            self.evaluator.learned.pop(place, None)

    @doing("validating")
    def add(self, lm: LanguageModel, batch: ScoringBatch) -> None:
        """Score some edited requests."""
        self.evaluator.add(lm, batch, self.unedited_answers)

    @doing("validating")
    def end_validation(self, lm: LanguageModel, track: Track) -> dict[str, float]:
        """Take the scores of a validation; returns what is logged of them."""
        self._keep(lm, self.evaluator.scores(lm, track))
        return self.evaluator.scalars(self.after)

    @doing("validating")
    def score_end(self, lm: LanguageModel, edits: int, batch_start: int, track: Track) -> None:
        """Score the end of a run whose last validation did not know that it was the last: one that a guard stopped."""
        self._keep(lm, self.evaluator.score_end(lm, edits, batch_start, self.unedited_answers, track))

    def _keep(self, lm: LanguageModel, scores: Scores) -> None:
        self.after = scores
        if self.evaluator.last:
            self.facts = self.evaluator.facts(lm, self.unedited_facts)
            self.failures = self.evaluator.failures(lm, self.facts)
            self.cases = self.evaluator.cases(lm, self.unedited_cases)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        plain["learned"] = {place: tuple(each) for place, each in self.evaluator.learned.items()}
        plain["made"] = {place: list(map(tuple, each)) for place, each in self.evaluator.made.items()}
        plain["causes_found"] = {place: str(cause) for place, cause in self.causes_found.items()}
        return plain | {name: to_plain(getattr(self, name)) for name in _SCORES}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what was measured before an interruption."""
        known = {"unedited_opening": None, **state}  # which earlier versions did not keep; needed after the first batch
        for name in _PLAIN:
            setattr(self, name, known[name])
        self.evaluator.learned = {place: Learned(*each) for place, each in state["learned"].items()}
        self.evaluator.made = {place: [MadeNeighbor(*m) for m in each] for place, each in state["made"].items()}
        self.causes_found = {place: Cause(value) for place, value in state["causes_found"].items()}
        self.before, self.after = (from_plain(state[name]) for name in _SCORES)
