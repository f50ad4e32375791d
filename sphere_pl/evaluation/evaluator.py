"""What a run measures and when: the evaluation half of `SequentialEditor`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from torch import nn

from sphere_pl.data.builtin import heldout_text
from sphere_pl.data.chat import ChatSettings
from sphere_pl.data.corpus import beginning, read_corpus
from sphere_pl.data.request import EditRequest
from sphere_pl.evaluation.answers import Answers, EditingMetrics, answer_requests
from sphere_pl.evaluation.cases import (
    Failures,
    answer_cases,
    answer_facts,
    asked_cases,
    asked_fact,
    case_prompts,
    failed_facts,
    look_at_failures,
)
from sphere_pl.evaluation.made_neighbors import MadeNeighbor, ask_edited, ask_unedited, made_prompts
from sphere_pl.evaluation.metrics.table import BY_AGE, PROTOCOLS
from sphere_pl.evaluation.outcomes import Learned, learned_of
from sphere_pl.evaluation.protocols import SAMPLED
from sphere_pl.evaluation.sample import AGES, ScoringBatch, age_of, fixed_sample
from sphere_pl.evaluation.scored import Scored, Scores
from sphere_pl.evaluation.scoring import perplexity
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.evaluation.texts import read_references, text_scores
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.progress import UNEDITED, Track, untracked
from sphere_pl.text.joining import opens_with_template

EDITED, TEXTS = "edited model", "text and free answers"  # what the passes after the teacher-forced one are called
NeighborAnswers = Mapping[int, Sequence[Sequence[int]]]
OPENING = 512  # tokens of the text: what is read of it after the first batch, to see whether the model is being wrecked


class Unedited(NamedTuple):
    """What is kept of the unedited model; nothing of it can be measured again once it is edited.

    Attributes:
        scores: Its scores, by name.
        neighbors: Its answers to the neighbours of each request, as tokens, by place in the stream.
        cases: What it writes after the prompts of the cases.
        facts: What it writes after each request's own prompt; empty in a run of many.
        opening: Perplexity of the text's opening; None if it was not measured. See `Evaluator.opening`.
    """

    scores: Scores
    neighbors: dict[int, list[list[int]]]
    cases: list[str]
    facts: list[str]
    opening: float | None = None


class Evaluator(nn.Module):
    """Scores the edits of one run: validation by validation, and more at its end.

    Args:
        settings: What is measured.
        chat: In which form facts are edited, and asked in chat form; a fit takes it from its data.

    Raises:
        UserError: If the reference texts cannot be read.
    """

    def __init__(self, settings: EvaluationSettings, chat: ChatSettings | None = None) -> None:
        super().__init__()
        self.settings, self.chat = settings, chat or ChatSettings()
        self.references = read_references(settings.references) if settings.references else None
        self.everything, self.latest = EditingMetrics(), EditingMetrics()
        self.ages = nn.ModuleDict({age: EditingMetrics() for age in AGES})
        self.requests: Sequence[EditRequest] = ()
        self.edits = self.batch_start = self.inherited = 0
        self.last = False
        self._scored: set[int] = set()
        self.made: dict[int, list[MadeNeighbor]] = {}  # neighbours of requests that give none, by place
        self.missed: dict[int, EditRequest] = {}  # scored edits without the wanted answer, by place
        self.learned: dict[int, Learned] = {}  # how each edit stood when its batch was done, as far as measured
        self._text: str | None = None

    # ------------------------------------------------------------------ before the first edit

    def measure_unedited(
        self, lm: LanguageModel, requests: Sequence[EditRequest], track: Track, inherited: int = 0
    ) -> Unedited:
        """Score the unedited model on all requests that will be scored, and keep its answers; see `plan`."""
        self.plan(requests, inherited)
        settings = self.settings
        self.made = ask_unedited(lm, requests, made_prompts(requests, settings.made_neighbors, settings.seed))
        metrics = EditingMetrics().to(lm.device)
        neighbors: dict[int, list[list[int]]] = {}
        batches = list(self._in_batches(self.scorable(len(requests))))
        for some, places in track(batches, UNEDITED, len(batches)):
            answers = answer_requests(lm, some)
            neighbors |= {place: _tokens(each) for place, each in zip(places, answers, strict=True)}
            answers, unedited = self._with_made(lm, places, answers, neighbors)
            metrics.update(places, answers, unedited)
        scores = metrics.summary()
        for measure in track((self.perplexity, self.sampled_scores), TEXTS, 2):
            scores |= measure(lm)
        cases = answer_cases(lm, case_prompts(self._shown()))
        return Unedited(scores, neighbors, cases, answer_facts(lm, requests) if self.asks_each else [])

    def plan(self, requests: Sequence[EditRequest], inherited: int = 0) -> None:
        """Say which requests there will be, the first of them edited by an earlier run; samples are drawn of them."""
        self.requests, self.inherited = requests, inherited

    def scorable(self, edits: int) -> list[int]:
        """Places of the first `edits` requests that are scored: a sample of those of an earlier run, and all others."""
        first = min(self.inherited, edits)
        some = first if self.settings.earlier is None else self.settings.earlier
        return [*fixed_sample(first, some, self.settings.seed), *range(first, edits)]

    @property
    def asks_each(self) -> bool:
        """Whether every fact is asked before and after."""
        count = len(self.requests)
        return count <= self.settings.facts and len(self.scorable(count)) == count

    # ------------------------------------------------------------------ a validation

    def begin(self, edits: int, batch_start: int, last: bool) -> None:
        """Begin a validation.

        Args:
            edits: How many edits there are so far.
            batch_start: Where in the stream the batch edited last begins.
            last: Whether the run ends here: all edits are scored then, and the sampled scores are taken again.
        """
        self.edits, self.batch_start, self.last = edits, batch_start, last
        wanted = edits if last else self.settings.validation_records
        self._scored = set(self.scorable(edits)) & set(fixed_sample(edits, wanted, self.settings.seed))
        self.missed = {}
        for metrics in self._metrics():
            metrics.reset()

    def batches(self) -> Iterator[ScoringBatch]:
        """The edits to score: those so far or a sample of them, and the last batch."""
        yield from self._in_batches(sorted(self._scored | set(range(self.batch_start, self.edits))))

    def _in_batches(self, places: Sequence[int]) -> Iterator[ScoringBatch]:
        for start in range(0, len(places), self.settings.batch_size):
            chosen = places[start : start + self.settings.batch_size]
            yield ScoringBatch(tuple(self.requests[place] for place in chosen), tuple(chosen))

    def add(self, lm: LanguageModel, batch: ScoringBatch, unedited: NeighborAnswers) -> None:
        """Score some edits, once for all the means that they belong to."""
        answers, unedited = self._with_made(lm, batch.places, answer_requests(lm, batch.requests), unedited)
        scored = list(zip(batch.places, batch.requests, answers, strict=True))
        chosen = [entry for entry in scored if entry[0] in self._scored]
        _update(self.everything, chosen, unedited)
        latest = [entry for entry in scored if entry[0] >= self.batch_start]
        _update(self.latest, latest, unedited)
        for place, _, answered in latest:
            self.learned.setdefault(place, learned_of(answered.rewrite[0]))
        for age in AGES:
            aged = [entry for entry in chosen if age_of(entry[0], self.edits) == age]
            _update(cast(EditingMetrics, self.ages[age]), aged, unedited)
        wrong = (entry for entry in chosen if any(a.predicted != a.target for a in entry[2].rewrite))
        self.missed |= {place: request for place, request, _ in wrong}

    def score_end(
        self,
        lm: LanguageModel,
        edits: int,
        batch_start: int,
        unedited: NeighborAnswers,
        track: Track = untracked,
    ) -> Scores:
        """Hold the last validation at once, outside of Lightning's; see `begin` and `scores`."""
        self.begin(edits, batch_start, last=True)
        for batch in track(self.batches(), EDITED, -(-edits // self.settings.batch_size)):
            self.add(lm, batch, unedited)
        return self.scores(lm, track)

    def scores(self, lm: LanguageModel, track: Track = untracked) -> Scores:
        """End a validation: what results.json says about the edited model."""
        if not self.last:
            return {**self.everything.summary(), **self.perplexity(lm)}
        scores = self.everything.summary()
        for measure in track((self.perplexity, self.sampled_scores), TEXTS, 2):
            scores |= measure(lm)
        return scores

    def scalars(self, scores: Mapping[str, Scored]) -> dict[str, float]:
        """What is logged of a validation: the scores, the last batch's, and accuracy by age; NaN left out."""
        logged = {f"val/{name}": score.value for name, score in scores.items()}
        logged |= {f"batch/{name}": float(value) for name, value in self.latest.compute().items()}
        for age in AGES:
            found = cast(EditingMetrics, self.ages[age]).compute()
            logged |= {f"retention/{age}/{name}": float(found[name]) for name in BY_AGE}
        return {name: value for name, value in logged.items() if not math.isnan(value)}

    def facts(self, lm: LanguageModel, before: Sequence[str]) -> list[dict[str, Any]]:
        """Each edit's own prompt with the unedited model's answer and this model's; empty in a run of many.

        Where there is a chat template, the answer in chat form stands beside them.
        """
        edited = self.requests[: self.edits] if before else []
        answers = zip(edited, before, answer_facts(lm, edited), strict=False)  # a run may stop early
        facts = [asked_fact(request).shown(old, new) for request, old, new in answers]
        in_chat = self._in_chat_form(lm, edited)
        for place, answer in zip(in_chat, answer_facts(lm, list(in_chat.values())), strict=True):
            facts[place] |= {"chat_after": answer, "chat_right": asked_fact(in_chat[place]).holds(answer)}
        return facts

    def failures(self, lm: LanguageModel, facts: Sequence[Mapping[str, Any]]) -> Failures:
        """Edits among those just scored that the model does not answer as wanted.

        Args:
            lm: The edited model.
            facts: What `facts` found. Where it found nothing, an edit fails that teacher forcing finds failed and whose
                free answer is another.
        """
        return failed_facts(self.requests[: self.edits], facts) if facts else look_at_failures(lm, self.missed)

    def cases(self, lm: LanguageModel, before: Sequence[str]) -> list[dict[str, Any]]:
        """The cases' prompts with the unedited model's answers, this model's and the wanted ones."""
        cases = asked_cases(self._shown())
        answers = zip(cases, before, answer_cases(lm, [asked.case for asked in cases]), strict=True)
        return [case.shown(old, new) for case, old, new in answers]

    # ------------------------------------------------------------------ parts

    def sampled_scores(self, lm: LanguageModel) -> Scores:
        """The protocols beside teacher forcing, and free texts, on the fixed sample."""
        settings = self.settings
        chosen, scores = self._sample(settings.sample), Scores()
        for protocol in PROTOCOLS:
            if protocol.name in settings.protocols and protocol.name in SAMPLED:
                asked = self._asked_in_chat(lm, chosen) if protocol.name == "chat" else chosen
                measured = SAMPLED[protocol.name](lm, asked)
                scores |= {protocol.prefix + name: score for name, score in measured.items()}
        if settings.texts:
            scores |= text_scores(lm, self._sample(settings.texts), self.references, settings.seed)
        return scores

    def _asked_in_chat(self, lm: LanguageModel, chosen: Sequence[EditRequest]) -> list[EditRequest]:
        """The sample, or all requests where chat is edited, in chat form; none where the tokenizer has none."""
        requests = chosen if self.chat.mode == "plain" else self.requests
        return list(self._in_chat_form(lm, requests).values())

    def _in_chat_form(self, lm: LanguageModel, requests: Sequence[EditRequest]) -> dict[int, EditRequest]:
        """Requests as the user's turn, by place; without those that are typed in a template already."""
        form = self.chat.scored(lm.tokenizer)
        if form is None:
            return {}
        asked = {place: each for place, each in enumerate(requests) if not opens_with_template(each.question)}
        return {place: request._replace(form=form) for place, request in asked.items()}

    def _with_made(
        self, lm: LanguageModel, places: Sequence[int], answers: list[Answers], unedited: NeighborAnswers
    ) -> tuple[list[Answers], NeighborAnswers]:
        """Put the answers to made neighbours where a record has none of its own, the unedited model's beside them."""
        chosen = {place: self.made[place] for place in places if place in self.made}
        if not chosen:
            return answers, unedited
        asked = dict(zip(chosen, ask_edited(lm, list(chosen.values())), strict=True))
        answers = [a._replace(neighbors=asked.get(p, a.neighbors)) for p, a in zip(places, answers, strict=True)]
        return answers, {**unedited, **{place: [each.predicted for each in made] for place, made in chosen.items()}}

    def perplexity(self, lm: LanguageModel) -> Scores:
        """`perplexity` on the held-out text; nothing if it is turned off."""
        tokens = self.settings.perplexity_tokens
        return {"perplexity": Scored(self._perplexity(lm, tokens))} if tokens else {}

    def opening(self, lm: LanguageModel, known: Mapping[str, Scored] = MappingProxyType({})) -> float | None:
        """Perplexity of the first `OPENING` tokens of the text; None if perplexity is turned off.

        Args:
            lm: The language model.
            known: Its scores, which hold that of a text that is no longer.
        """
        tokens = self.settings.perplexity_tokens
        if tokens <= OPENING and "perplexity" in known:
            return known["perplexity"].value
        return self._perplexity(lm, min(tokens, OPENING)) if tokens else None

    def _perplexity(self, lm: LanguageModel, tokens: int) -> float:
        if self._text is None:
            documents = read_corpus(self.settings.text) if self.settings.text else [heldout_text()]
            # Characters enough for the tokens, however many documents there are.
            self._text = beginning(documents, 20 * self.settings.perplexity_tokens)
        return perplexity(lm, self._text, tokens)

    def _shown(self) -> list[EditRequest]:
        """The records of the case study; one without neighbours shows its first made one."""
        places = fixed_sample(len(self.requests), self.settings.cases, self.settings.seed)
        made = {place: tuple(each.prompt for each in self.made.get(place, ())[:1]) for place in places}
        shown = [(self.requests[place], made[place]) for place in places]
        return [request._replace(neighbors=request.neighbors or some) for request, some in shown]

    def _sample(self, size: int) -> list[EditRequest]:
        return [self.requests[place] for place in fixed_sample(len(self.requests), size, self.settings.seed)]

    def _metrics(self) -> list[EditingMetrics]:
        return [self.everything, self.latest, *(cast(EditingMetrics, metrics) for metrics in self.ages.values())]


def score_requests(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    settings: EvaluationSettings = EvaluationSettings(),
    unedited: NeighborAnswers | None = None,
    track: Track = untracked,
    chat: ChatSettings | None = None,
) -> Scores:
    """Score a model on requests outside a fit, by the names of results.json.

    Args:
        lm: The language model, edited or not.
        requests: The requests in the order of the stream.
        settings: What is measured.
        unedited: The unedited model's answers to the neighbours, by place, as a run keeps them; without them there is
            no neighbourhood agreement.
        track: Shows progress.
        chat: In which form facts were edited, and are asked in chat form.
    """
    evaluator = Evaluator(settings, chat).to(lm.device)
    evaluator.plan(requests)
    return evaluator.score_end(lm, len(requests), 0, unedited or {}, track)


def _update(
    metrics: EditingMetrics, scored: Sequence[tuple[int, EditRequest, Answers]], unedited: NeighborAnswers
) -> None:
    metrics.update([place for place, _, _ in scored], [answers for _, _, answers in scored], unedited)


def _tokens(answers: Answers) -> list[list[int]]:
    return [neighbor.predicted for neighbor in answers.neighbors]
