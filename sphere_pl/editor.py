"""Sequential knowledge editing as a LightningModule: one edit batch, one step."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from sphere_callbacks import LayerwiseEdit
from sphere_pl.data.datamodule import EditLoader
from sphere_pl.data.request import EditBatch, EditRequest
from sphere_pl.editing.algorithm import edit_batch
from sphere_pl.editing.checks import check_arguments, check_run
from sphere_pl.editing.curvature import curvature_factors
from sphere_pl.editing.distributed import Shares
from sphere_pl.editing.guard import Guard, GuardSettings
from sphere_pl.editing.key_plan import KeyPlan
from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.editing.preparation import Preparation, measure_anchors, planned_requests
from sphere_pl.editing.prepared import KnownStates, Prepared
from sphere_pl.editing.problem import ModelBatch, Posing, Solved
from sphere_pl.editing.states import MethodStates, Offload, device_of
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editing.targets import Targets
from sphere_pl.evaluation.fact_list import give_facts
from sphere_pl.evaluation.first_batch import look
from sphere_pl.evaluation.kept_unedited import unedited_file
from sphere_pl.evaluation.later_batches import Look, alarm, is_due
from sphere_pl.evaluation.outcomes import known_causes
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.evaluation.validation import ScoredModule
from sphere_pl.history.continuation import Earlier
from sphere_pl.history.fingerprints import check_requests
from sphere_pl.history.run_state import RunState, taken_from
from sphere_pl.methods.base import Method
from sphere_pl.model.embedded import EMBEDDED_MODEL
from sphere_pl.model.fingerprint import fingerprint
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.loading import DeviceMap, Dtype
from sphere_pl.model.source import ModelSource
from sphere_pl.process.failures import doing
from sphere_pl.progress import Track, track, untracked
from sphere_pl.tuning.found import AutoSettings, Found, find_settings
from sphere_pl.tuning.known import as_known

log = logging.getLogger(__name__)

# Attributes that a checkpoint holds as they are: plain values and tensors.
_KEPT = ("model_hash", "max_tokens", "contexts", "anchors", "batch_start", "edits_seen")


class SequentialEditor(ScoredModule):
    """Edit a language model batch after batch, never resetting it.

    Args:
        method: The method that finds each layer's update; AlphaEdit if None.
        layers: Blocks whose MLP down-projection is edited, ascending; the deepest is where targets are found. If None
            they are those of the model's own file in conf/model, or found for it as `auto` says.
        name: Hub id, local folder, GGUF file, or the embedded default model.
        targets: How target values are optimised.
        statistics: Which text the method's second moments come from.
        evaluation: What is measured.
        guard: What is done about an update that would break the model.
        contexts: How many sampled context templates to edit after, beside the plain prompt.
        context_length: Tokens of each.
        dtype: Floating-point type of the language model; `auto` takes the checkpoint's own.
        revision: Branch, tag or commit of a hub model.
        trust_remote_code: Whether code from the hub may run.
        cache_dir: Where the embedded model is kept; the user's cache folder if None.
        device_map: How the model's layers are spread over the devices of this process; the trainer's device has them
            all if None. See `load_language_model`.
        architecture: Where the parts of a model are whose family is not in the table; see docs/models.md.
        auto: How layers and the targets' learning rate are found for a model that has no file of its own.
        statistics_device: Where second moments are summed and where null-space bases and the memory of earlier keys are
            held, `cpu` as a rule; a matrix's own device if None. Solves take place on the matrix's device all the same.

    Raises:
        UserError: If the model, a layer or an argument is not what editing needs.
    """

    def __init__(
        self,
        method: Method | None = None,
        layers: list[int] | None = None,
        name: str = EMBEDDED_MODEL,
        targets: TargetSettings = TargetSettings(),
        statistics: StatisticsSettings = StatisticsSettings(),
        evaluation: EvaluationSettings = EvaluationSettings(),
        guard: GuardSettings = GuardSettings(),
        contexts: int = 2,
        context_length: int = 10,
        dtype: Dtype = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
        device_map: DeviceMap = None,
        architecture: dict[str, Any] | None = None,
        statistics_device: str | None = None,
        auto: AutoSettings = AutoSettings(),
    ) -> None:
        super().__init__(evaluation)
        method, layers, targets, statistics = as_known(name, method, layers, targets, statistics)
        check_arguments(method, contexts, context_length, name)
        self.method, self.layers, self.name, self.auto = method, list(layers or ()), name, auto
        self.source = ModelSource(name, layers, dtype, revision, trust_remote_code, cache_dir, device_map, architecture)
        self.target_settings, self.statistics = targets, statistics
        self.n_contexts, self.context_length = contexts, context_length
        self.guard, self.offload = Guard(guard), Offload(device_of(statistics_device))
        self.max_tokens = targets.max_tokens or 0  # in one forward pass; settled when training starts
        self.states, self.plan = MethodStates([], []), KeyPlan()
        self.requests, self.contexts, self.anchors = list[EditRequest](), list[str](), torch.zeros(0)
        self.places: tuple[int, ...] = ()  # of the batch edited last, in the stream
        # Of the batch at hand: its target values, and what the method was asked, for the edit log.
        self.targets, self.solved = cast(Targets | None, None), list[Solved]()
        self.diagnosis: dict[str, dict[str, float]] = {}
        self.model_hash = ""  # fingerprint of the unedited model
        self._resumed: dict[str, Any] = {}
        self._unedited_norms = list[Tensor]()
        self._last_look: Look | None = None  # at the model, in this process
        self._searched: KnownStates | None = None  # states that a search for settings has left
        self.earlier: Earlier | None = None  # the edits of the run that this one continues
        self.prepared: Prepared | None = None  # what other runs in this process have found out, if it is kept

    def training_step(self, batch: EditBatch, batch_idx: int) -> None:
        """Edit one batch: Algorithm 1 of SPHERE (arXiv 2510.01172).

        1. Target values z, on the model as it is: `pose`. Then `edit_batch`, layer by layer from shallow to deep:
        2. the method's update Δ from keys K and residuals R, on the weights as they are now;
        3. Lightning's hook `on_before_optimizer_step`: `SparseProjection` makes it Δ - α (Δ U) Uᵀ;
        4. W ← W + Δ, and the next layer sees it.
        5. The keys of the edited model join the method's memory.
        """
        if not batch.requests:  # nothing failed that would be edited again
            self.targets, self.solved = None, []
            self._finish(batch, {})
            return
        problem = self.pose(batch)
        optimizer = cast(LayerwiseEdit, self.optimizers())
        try:
            kept = edit_batch(problem, self.method, self.states, optimizer, self.guard)
        finally:
            self.refresh_model()
        self.targets, self.solved = problem.targets, problem.solved() if kept else []
        self._finish(batch, problem.scalars(self.target_settings))

    def pose(self, batch: EditBatch) -> ModelBatch:
        """Put a batch to the method: what it asks of each matrix."""
        shares = Shares(self.trainer.global_rank, self.trainer.world_size)
        posing = Posing(self.method, self.sites, self.contexts, self.max_tokens, shares, self.plan.ask)
        return ModelBatch(self.language_model, list(self.weights), batch, posing, self.find_targets)

    @doing("optimising target values")
    def find_targets(self, problem: ModelBatch) -> Targets:
        """Optimise the target values of a batch on the model as it is."""
        targets = problem.optimize_targets(self.target_settings)
        return targets.anchored(self.anchors[problem.places]) if self.target_settings.anchor else targets

    def _finish(self, batch: EditBatch, reached: dict[str, Tensor | float]) -> None:
        """Move on in the stream and log what the optimisation reached at its last look."""
        self.batch_start, self.edits_seen, self.places = batch.start, batch.edits, batch.places
        self.scores.forget(batch.again)
        self._give_facts()
        scalars: dict[str, Any] = {"edits": float(self.edits_seen), **self.guard.scalars()}
        scalars |= {f"target/{name}": value for name, value in reached.items()}
        self.log_dict(scalars, on_step=True, on_epoch=False, batch_size=1)

    def curvature_factors(self, tokens: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Kronecker factors of the edited matrices on the unedited model, for `CurvatureProjection`."""
        return curvature_factors(self.language_model, self.sites, self.statistics, tokens, track(self.trainer))

    def _give_facts(self) -> None:
        """Let the model read the edits so far, if the method edits no weight."""
        give_facts(self.language_model, self.requests[: self.edits_seen], self.method.retrieval, self.evaluator.chat)

    def setup(self, stage: str) -> None:
        """Refuse what cannot do what is asked of it, before anything is loaded."""
        check_run(self.trainer, self.method, self.layers, self.target_settings, self.source.device_map)

    def load(self, device: torch.device | None = None) -> LanguageModel:
        """Load the language model; one whose settings are to be found, to where they are, if a device is named."""
        if self.lm is None:
            self.lm = self.source.load()
            if device is not None and self.source.layers is None and not self.lm.spread:
                self.lm.to(device)
        return self.lm

    def settle(self, track: Track = untracked) -> Found | None:
        """Load the language model and find what is open of its settings; None if nothing was."""
        lm = self.load()
        if self.source.layers is not None:
            return None
        contexts = (self.n_contexts, self.context_length)
        found = find_settings(lm, self.method, self.target_settings, self.statistics, contexts, self.auto, track)
        self.layers = self.source.layers = found.layers
        self._searched = found.prepared
        self.target_settings, self.method = found.targets(self.target_settings), found.method(self.method)
        return found

    def configure_model(self) -> None:
        """Load the language model and take float32 copies of the matrices to edit, once."""
        found = self.settle()
        if found is not None:
            log.warning("%s", found.lines())
        self.take_matrices(self.layers)
        if self.earlier is not None:  # here, where nothing has been written yet
            self.earlier.check_base(fingerprint(self.language_model), self.matrices, self.name, self.method.retrieval)

    def on_train_start(self) -> None:
        """Prepare the method and measure the unedited model; a resumed run restores what it had measured."""
        self.model_hash = fingerprint(self.language_model)
        self.requests = planned_requests(self.trainer, self.method)
        if self._resumed:
            check_requests(self._resumed["requests"], self.requests)
        loader = cast(EditLoader, self.trainer.train_dataloader)
        self.evaluator.chat, loader.failing = loader.chat, self.failing
        self._prepare(loader)
        self._unedited_norms, inherited = self.norms(), len(loader.earlier)
        if self._resumed:
            self.evaluator.plan(self.requests, inherited)
            self._resume()
            return
        path, agree = self._unedited_file(inherited), self.trainer.strategy.broadcast
        self.scores.measure_unedited(self.language_model, self.requests, track(self.trainer), inherited, path, agree)
        if self.earlier is not None:
            self._continue(self.earlier)

    def _prepare(self, loader: EditLoader) -> None:
        """Settle on the unedited model what editing rests on; each step needs those before it."""
        lm, bars, preparation = self.language_model, track(self.trainer), self.preparation
        first = preparation.first_phrasings(loader)
        self.max_tokens = self._settled("max_tokens", lambda: preparation.tokens_at_once(first))
        # Contexts and keys before second moments, which take minutes: here requests are refused.
        self.contexts = self._settled("contexts", preparation.sample_contexts)
        same_key = self.target_settings.same_key
        plan = preparation.look_at_keys(loader, self.requests, self.contexts, self.max_tokens, same_key)
        self.plan = self.trainer.strategy.broadcast(plan)
        self.requests, self.scores.causes_found = list(self.plan.requests), known_causes(self.plan)
        searched, self._searched = self._searched, None
        self.states, self.diagnosis = preparation.find_states(list(self.weights), self.statistics, searched, bars)
        if self.target_settings.anchor:
            known = self._resumed.get("anchors", torch.zeros(0))
            self.anchors = measure_anchors(lm, self.requests, self.layers, self.max_tokens, known, bars)

    def _unedited_file(self, inherited: int) -> Path | None:
        """Where the unedited model's answers are kept; None for a model that another program holds or has code for."""
        known = self.source.loaded and not self.source.trust_remote_code and self.language_model.reading is None
        if not (known and self.evaluation.keep_unedited):
            return None
        asked = (self.requests, inherited, self.evaluation, self.evaluator.chat)
        return unedited_file(self.language_model, self.model_hash, *asked, self.statistics.cache_dir)

    @property
    def preparation(self) -> Preparation:
        """What is settled from the model and the settings alone, before the first batch."""
        settings = (self.n_contexts, self.context_length, self.target_settings.max_tokens, self.offload)
        known = (self.model_hash, self.prepared)
        return Preparation(self.language_model, self.sites, self.method, *settings, *known)

    def _settled(self, name: str, choose: Callable[[], Any]) -> Any:
        """What a resumed run has settled, or what is chosen now; the same in all processes."""
        return self.trainer.strategy.broadcast(self._resumed.get(name) or choose())

    def on_train_batch_end(self, outputs: Any, batch: EditBatch, batch_idx: int) -> None:
        """Follow a callback that moved the weights after the step, and look at what the batches did."""
        self.refresh_model()
        if self.guard.settings.first_batch == "off":
            return
        if batch.start == self._inherited and not self.guard.skipped:
            self._look_at_first(batch)
        elif is_due(batch.start, batch.edits):  # what edits facts again is followed by the last scores
            self._look_again(batch.edits)

    @property
    def _inherited(self) -> int:
        """Edits of the run that this one continues."""
        return 0 if self.earlier is None else len(self.earlier.requests)

    @doing("looking at the first batch")
    def _look_at_first(self, batch: EditBatch) -> None:
        targets, norms = (self.targets, self.target_settings), (self._unedited_norms, self.norms())
        seen = look(self.language_model, batch, targets, norms, self.evaluator, self.scores.unedited_opening)
        self.guard.judge(seen.line(), seen.fails, seen.wrecks(self.guard.settings))
        if seen.perplexity is not None:
            self._last_look = Look(batch.edits, seen.perplexity[1])

    @doing("looking at the model again")
    def _look_again(self, edits: int) -> None:
        unedited, perplexity = self.scores.unedited_opening, self.evaluator.opening(self.language_model)
        if unedited is None or perplexity is None:
            return
        last, self._last_look = self._last_look or Look(0, unedited), Look(edits, perplexity)
        limit = self.guard.settings.max_perplexity_ratio
        said = alarm(unedited, last, self._last_look, limit, self._inherited)
        if said:
            log.warning("%s", said)

    @property
    def run_state(self) -> RunState:
        """What changes while editing, beside the attributes in `_KEPT`."""
        return RunState(self.matrices, self.method, self.states, self.guard, self.scores)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what changes: edited matrices, the method's memory, random states, and all of `_KEPT`."""
        checkpoint.update(self.run_state.saved({name: getattr(self, name) for name in _KEPT}, self.requests))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the edited matrices; the rest follows when training starts."""
        self._resumed = taken_from(checkpoint, fingerprint(self.language_model), self.name)

    @doing("taking over the earlier run")
    def _continue(self, earlier: Earlier) -> None:
        """Turn the unedited model into the one that an earlier run has left, with the memory of its keys."""
        self.run_state.take_over(earlier)
        if self.target_settings.max_tokens is None:
            self.max_tokens = min(self.max_tokens, earlier.kept.get("max_tokens", self.max_tokens))
        self.batch_start = self.edits_seen = len(earlier.requests)
        self._give_facts()
        self.refresh_model()

    @doing("restoring the checkpoint")
    def _resume(self) -> None:
        """Go back to where the interrupted run was when the checkpoint was written."""
        resumed, self._resumed = self._resumed, {}
        self.run_state.restore(resumed)
        for name in _KEPT:
            setattr(self, name, resumed[name])
        self._give_facts()
        self.refresh_model()
