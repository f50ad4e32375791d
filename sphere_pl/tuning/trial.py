"""One candidate tried out: some built-in facts edited, scored and taken back."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sphere_pl.data.datamodule import built_in_facts
from sphere_pl.data.request import EditBatch, EditRequest
from sphere_pl.editing.algorithm import edit_batch, layer_walk
from sphere_pl.editing.distributed import Shares
from sphere_pl.editing.guard import Guard, GuardSettings
from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.editing.preparation import Preparation
from sphere_pl.editing.prepared import KnownStates, StatePreparation
from sphere_pl.editing.problem import ModelBatch, Posing
from sphere_pl.editing.representations import SubjectStream
from sphere_pl.editing.states import MethodStates, Offload
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editing.targets import Targets
from sphere_pl.evaluation.evaluator import Evaluator, Unedited
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.methods import KnownProblem
from sphere_pl.methods.base import Method
from sphere_pl.model.families import EditSite
from sphere_pl.model.generation import sample_contexts
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.products import fast_products
from sphere_pl.progress import Track, untracked

_SCORED = EvaluationSettings(
    protocols=["teacher_forced"],
    sample=0,
    texts=0,
    cases=0,
    facts=0,
    made_neighbors=0,
    perplexity_tokens=400,
    batch_size=10,
)
_CROWD = 100  # facts that are remembered, about
_FAIR, _GOOD = 1.05, 0.9  # a perplexity's ratio that is no damage, and an efficacy that needs no second look


@dataclass(frozen=True)
class Outcome:
    """What a candidate reached.

    Attributes:
        efficacy: Share of the facts that the edited model answers as wanted.
        generalization: The same of their paraphrases.
        agreement: Share of neighbouring questions that it answers as before.
        perplexity_ratio: Perplexity on held-out prose over that of the unedited model.
    """

    efficacy: float
    generalization: float
    agreement: float
    perplexity_ratio: float

    @property
    def harmless(self) -> bool:
        """Whether the model is otherwise as it was."""
        return self.agreement >= 0.75 and self.perplexity_ratio <= _FAIR

    @property
    def good(self) -> bool:
        """Whether nothing better need be looked for."""
        return self.harmless and self.efficacy >= _GOOD and self.generalization >= 0.4

    @property
    def score(self) -> float:
        """Harmonic mean of efficacy, generalization and agreement, less what the perplexity has grown."""
        parts = (self.efficacy, self.generalization, self.agreement)
        mean = 0.0 if min(parts) <= 0 else 3 / sum(1 / part for part in parts)
        return mean / max(1.0, self.perplexity_ratio / _FAIR)

    def line(self) -> str:
        """The figures in words."""
        return (
            f"efficacy {self.efficacy:.2f}, generalization {self.generalization:.2f}, neighborhood agreement "
            f"{self.agreement:.2f}, perplexity x{self.perplexity_ratio:.3g}"
        )

    def plain(self) -> dict[str, float]:
        """The figures, rounded."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


@dataclass
class Kept:
    """What the candidate that was tried last has found.

    Attributes:
        prepared: The method's states.
        asked: Which targets were asked for.
        targets: Those.
    """

    prepared: KnownStates | None = None
    asked: str = ""
    targets: Targets | None = None


class Bench(NamedTuple):
    """Everything of a trial but the candidate.

    Attributes:
        lm: The unedited language model; it is unedited after each trial.
        facts: What is edited, in one batch.
        crowd: Facts whose keys the method remembers beforehand, as if they had been edited before: a long run is not
            like its first batch.
        contexts: Context templates, the empty one first.
        context_length: Tokens of each.
        method: The method.
        statistics: Where its second moments come from.
        unedited: What was measured of the unedited model.
        evaluator: Measures.
        track: Shows progress.
        kept: What the candidate tried last has found, and another regulariser can take over.
    """

    lm: LanguageModel
    facts: Sequence[EditRequest]
    crowd: Sequence[EditRequest]
    contexts: Sequence[str]
    context_length: int
    method: Method
    statistics: StatisticsSettings
    unedited: Unedited
    evaluator: Evaluator
    track: Track
    kept: "Kept"

    @classmethod
    def set_up(
        cls,
        lm: LanguageModel,
        method: Method,
        statistics: StatisticsSettings,
        contexts: tuple[int, int],
        facts: Sequence[EditRequest],
        track: Track,
    ) -> "Bench":
        """Sample contexts, so many of a length, and measure the unedited model."""
        count, length = contexts
        templates = sample_contexts(lm, count=count, length=length, seed=0)
        evaluator = Evaluator(_SCORED).to(lm.device)
        unedited = evaluator.measure_unedited(lm, facts, untracked)
        tried = {fact.case_id for fact in facts}
        others = [fact for fact in built_in_facts() if fact.case_id not in tried]
        crowd = others[:: max(1, len(others) // _CROWD)]
        return cls(lm, facts, crowd, templates, length, method, statistics, unedited, evaluator, track, Kept())

    def try_out(self, layers: Sequence[int], targets: TargetSettings, method: Method | None = None) -> Outcome:
        """Edit the facts with a candidate's settings, score the model and take the edit back."""
        sites = self.lm.sites(list(layers))
        before = [site.stored.detach().clone() for site in sites]
        try:
            with fast_products(self.lm, [site.module for site in sites]):
                self._edit(layers, targets, method or self.method)
                return self._outcome()
        finally:
            with torch.no_grad():
                for site, kept in zip(sites, before, strict=True):
                    site.stored.copy_(kept)

    def _edit(self, layers: Sequence[int], targets: TargetSettings, method: Method) -> None:
        lm, sites = self.lm, self.lm.sites(list(layers))
        weights: list[Tensor] = [torch.nn.Parameter(site.read()) for site in sites]
        states = self._prepare(sites, weights, method)
        contexts = (len(self.contexts) - 1, self.context_length)
        preparation = Preparation(lm, sites, method, *contexts, targets.max_tokens, Offload(None))
        most = preparation.tokens_at_once(self.facts)
        posing = Posing(method, sites, self.contexts, most, Shares(0, 1))
        self._remember_crowd(method, sites, states, most)
        problem = ModelBatch(lm, weights, EditBatch(tuple(self.facts), 0), posing, partial(self._targets, targets))
        edit_batch(problem, method, states, layer_walk(sites, weights), Guard(GuardSettings()))

    def _remember_crowd(self, method: Method, sites: Sequence[EditSite], states: MethodStates, most: int) -> None:
        stream = SubjectStream(self.lm, self.crowd, [""], sites[0].layer, most)
        for layer, (site, keys) in enumerate(zip(sites, stream.all_keys(sites), strict=True)):
            weight = site.read()
            earlier = KnownProblem(keys.to(weight), weight.new_zeros(len(keys), len(weight)), weight)
            states.update(layer, partial(method.remember, earlier))

    def _targets(self, settings: TargetSettings, problem: ModelBatch) -> Targets:
        asked = f"{[site.layer for site in problem.posing.sites]} {settings}"
        if self.kept.targets is None or asked != self.kept.asked:
            self.kept.asked, self.kept.targets = asked, problem.optimize_targets(settings)
        return self.kept.targets

    def _prepare(self, sites: Sequence[EditSite], weights: Sequence[Tensor], method: Method) -> MethodStates:
        known = self.kept.prepared
        preparation = StatePreparation(self.lm, sites, weights, method, self.statistics, Offload(None), self.track)
        states, _ = preparation.find(known, keep=False)  # of many candidates one is taken
        self.kept.prepared = KnownStates([site.layer for site in sites], method, list(states))
        return states

    def _outcome(self) -> Outcome:
        scores = self.evaluator.score_end(self.lm, len(self.facts), 0, self.unedited.neighbors)
        before = self.unedited.scores["perplexity"].value
        return Outcome(
            scores["efficacy"].value,
            scores["generalization"].value,
            scores["neighborhood_agreement"].value,
            scores["perplexity"].value / before,
        )
