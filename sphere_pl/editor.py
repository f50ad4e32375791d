"""Sequential knowledge editing as a LightningModule: one edit batch, one step."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from sphere_callbacks.functional import exact_products
from sphere_pl.architectures import EditSite
from sphere_pl.budget.lending import Lender
from sphere_pl.budget.needs import Need, batch_of, capacity, fitting_tokens, need, shapes_of
from sphere_pl.data.datamodule import EditDataModule, EditLoader
from sphere_pl.data.request import EditBatch, EditRequest
from sphere_pl.distributed import gather_shares, share_of
from sphere_pl.embedded import EMBEDDED_MODEL
from sphere_pl.errors import UserError
from sphere_pl.evaluation.evaluator import Evaluator
from sphere_pl.evaluation.sample import ScoringBatch
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.guard import GuardSettings, RefusedUpdateError, diagnose, guarded, report_statistics
from sphere_pl.language_model import DeviceMap, Dtype, LanguageModel, load_language_model
from sphere_pl.likelihood import TargetLikelihood
from sphere_pl.methods.base import EditingMethod, LikelihoodMethod, Method, Solved, State
from sphere_pl.methods.functional import spread_residual
from sphere_pl.optim import LayerwiseEdit
from sphere_pl.progress import track
from sphere_pl.prompts import check_length
from sphere_pl.refusals import check_arithmetic, check_batch_size, check_method, check_precision, check_strategy
from sphere_pl.representations import SubjectStream
from sphere_pl.resilience.failures import doing
from sphere_pl.resilience.fingerprints import check_requests, request_hashes
from sphere_pl.resilience.randomness import random_states, restore_random_states
from sphere_pl.sampling import sample_contexts
from sphere_pl.statistics import SecondMoment, StatisticsSettings, fingerprint, second_moments
from sphere_pl.targets import Targets, TargetSettings, optimize_targets
from sphere_pl.trainers import is_last_step

log = logging.getLogger(__name__)
ANCHOR_RECORDS = 20  # whose target norms are measured together
# Attributes of the editor that a checkpoint holds as they are: plain values and tensors.
_KEPT = ("model_hash", "max_tokens", "contexts", "anchors", "batch_start", "edits_seen", "unedited_answers",
         "unedited_cases", "before", "after", "failed", "cases", "retried", "skipped", "_skipped_in_a_row")  # fmt: skip


class SequentialEditor(L.LightningModule):
    """Edit a language model batch after batch, never resetting it.

    The edited matrices live here as float32 parameters of shape `[d_out, d_in]`: they are what the optimizer,
    the callbacks and the checkpoint see. The language model's own tensors follow them, in the model's dtype.

    Args:
        method: The method that finds each layer's update.
        layers: Blocks whose MLP down-projection is edited, ascending; the deepest is where targets are found.
        name: Hub id, local folder, or the embedded default model.
        targets: How target values are optimised.
        statistics: Which text the method's second moments come from.
        evaluation: What is measured.
        guard: What is done about an update that would break the model.
        contexts: How many sampled context templates to edit behind, beside the plain prompt.
        context_length: Tokens of each.
        dtype: Floating-point type of the language model; `auto` takes the checkpoint's own.
        revision: Branch, tag or commit of a hub model.
        trust_remote_code: Whether code from the hub may run.
        cache_dir: Where the embedded model is kept; the user's cache folder if None.
        device_map: How the model's layers are spread over the devices of this process; the trainer's device has them
            all if None. See `load_language_model`.
        statistics_device: Where second moments are summed and where null-space bases and the memory of earlier keys are
            held, `cpu` as a rule; a matrix's own device if None. Solves take place on the matrix's device all the same.

    Raises:
        UserError: If the model, a layer or an argument is not what editing needs.
    """

    def __init__(
        self,
        method: Method,
        layers: list[int],
        name: str = EMBEDDED_MODEL,
        targets: TargetSettings = TargetSettings(),
        statistics: StatisticsSettings = StatisticsSettings(),
        evaluation: EvaluationSettings = EvaluationSettings(),
        guard: GuardSettings = GuardSettings(),
        contexts: int = 5,
        context_length: int = 10,
        dtype: Dtype = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
        device_map: DeviceMap = None,
        statistics_device: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(method, EditingMethod | LikelihoodMethod):
            raise UserError(
                f"`method={method!r}` is neither an `EditingMethod` nor a `LikelihoodMethod`. Subclass one of them."
            )
        if contexts < 0 or context_length < 2:
            raise UserError(
                f"`contexts={contexts}` must be at least 0 and `context_length={context_length}` at least 2."
            )
        self.max_tokens = targets.max_tokens or 0  # in one forward pass; settled when training starts
        self.lender = Lender(_device(statistics_device))
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint holds the edited matrices only
        self.method: EditingMethod | LikelihoodMethod = method
        self.layers, self.name = layers, name
        self.target_settings, self.statistics, self.evaluation = targets, statistics, evaluation
        self.evaluator = Evaluator(evaluation)
        self.n_contexts, self.context_length, self.guard = contexts, context_length, guard
        self._load = {
            "dtype": dtype,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
            "cache_dir": cache_dir,
            "device_map": device_map,
        }
        self.lm: LanguageModel | None = None
        self.sites: list[EditSite] = []
        self.weights = nn.ParameterList()
        self.states: list[State] = []
        self.solved: list[Solved] = []  # what the method was asked in the batch at hand, for the edit log
        self.contexts: list[str] = []
        self.anchors = torch.zeros(0)
        self.requests: list[EditRequest] = []
        self.batch_start = self.edits_seen = 0
        self.unedited_answers: dict[int, list[list[int]]] = {}
        self.unedited_cases: list[str] = []
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.failed: list[dict[str, str]] = []
        self.cases: list[dict[str, str]] = []
        self.diagnosis: dict[str, dict[str, float]] = {}
        self.retried: list[dict[str, Any]] = []
        self.skipped: list[dict[str, Any]] = []
        self._skipped_in_a_row = 0
        self.found: Targets | None = None  # of the batch at hand
        self.model_hash = ""  # fingerprint of the unedited model
        self._resumed: dict[str, Any] = {}

    # ------------------------------------------------------------------ set-up

    def setup(self, stage: str) -> None:
        """Refuse a strategy, a device or a method that cannot do what is asked of it, before anything is loaded."""
        check_strategy(self.device_map, self.trainer)
        check_precision(self.trainer.strategy.root_device)
        check_method(self.method, self.layers, self.target_settings)
        datamodule = getattr(self.trainer, "datamodule", None)
        if isinstance(datamodule, EditDataModule):
            check_batch_size(self.method, datamodule.batch_size)

    def _apply(self, fn: Any, recurse: bool = True) -> "SequentialEditor":
        """Leave everything where it is if the model is spread over devices: Lightning would move it to one of them.

        The edited matrices lie beside the model's own, and what scores them counts on the CPU.
        """
        return self if self.lm is not None and self.lm.spread else super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    @doing("loading the language model")
    def configure_model(self) -> None:
        """Load the language model and take float32 copies of the matrices to edit, once."""
        if self.lm is None:
            self.lm = load_language_model(self.name, **self._load)  # type: ignore[arg-type]
        if not self.sites:
            self.sites = self.lm.sites(self.layers)
            self.weights.extend(nn.Parameter(site.read()) for site in self.sites)

    @property
    def language_model(self) -> LanguageModel:
        """The language model; there from `configure_model` on."""
        if self.lm is None:
            raise RuntimeError("The language model is loaded by the trainer, or by calling `configure_model()`.")
        return self.lm

    @property
    def revision(self) -> str | None:
        """Branch, tag or commit of a hub model."""
        return cast(str | None, self._load["revision"])

    @property
    def device_map(self) -> DeviceMap:
        """How the model's layers are spread over devices; None if they are not."""
        return cast(DeviceMap, self._load["device_map"])

    @property
    def solves(self) -> bool:
        """Whether the method solves for keys and residuals, which `solved` holds."""
        return isinstance(self.method, EditingMethod)

    def configure_optimizers(self) -> LayerwiseEdit:
        """One parameter group for each edited matrix, under its Hugging Face name."""
        groups = [
            {"params": [weight], "name": site.name, "fan_in_fan_out": False}
            for site, weight in zip(self.sites, self.weights, strict=True)
        ]
        return LayerwiseEdit(groups, after_update=self._refresh)

    def on_fit_start(self) -> None:
        """Refuse trainer settings that would edit wrongly."""
        check_arithmetic(self.trainer)

    def on_train_start(self) -> None:
        """Prepare the method and measure the unedited model; on a resumed run, take both up again."""
        lm = self.language_model
        self.model_hash = fingerprint(lm)
        self.requests = self._planned_requests()
        if self._resumed:
            check_requests(self._resumed["requests"], self.requests)
        self.max_tokens = self._settle_tokens()
        self._prepare_method()
        self.contexts = self._choose_contexts()
        if self.target_settings.anchor:
            self.anchors = self._measure_anchors(self._resumed.get("anchors", torch.zeros(0)))
        if self._resumed:
            self.evaluator.plan(self.requests)
            self._resume()
        else:
            with doing("measuring the unedited model"):
                measured = self.evaluator.measure_unedited(lm, self.requests, track(self.trainer))
            self.before, self.unedited_answers, self.unedited_cases = measured

    @doing("preparing second moments and the method")
    def _prepare_method(self) -> None:
        """Find out what the method knows of each matrix, and report what is odd about it."""
        moments: dict[str, SecondMoment] = {}
        if self.method.needs_second_moment:
            moments = second_moments(
                self.language_model, self.sites, self.statistics, track(self.trainer), self.lender.home
            )
        self.diagnosis = {}
        self.states = [self._initial_state(site, moments.pop(site.name, None)) for site in self.sites]
        report_statistics(self.diagnosis)

    @property
    def _places(self) -> list[torch.device]:
        """Where each matrix is."""
        return [weight.device for weight in self.weights]

    def _initial_state(self, site: EditSite, known: SecondMoment | None) -> State:
        """What the method knows of one matrix, as it is held."""
        moment, half = known or (None, None)
        state = self.method.initial_state(site.read(), None if moment is None else moment.to(site.stored.device))
        self.diagnosis[site.name] = diagnose(state, moment, half, self.method.null_space_threshold)
        return self.lender.keep(state)

    def _settle_tokens(self) -> int:
        """Tokens in one forward pass, the same in all processes and in a resumed run."""
        loader = cast(EditLoader, self.trainer.train_dataloader)
        found = self._resumed.get("max_tokens") or self.tokens_at_once(loader.requests[: loader.batch_size])
        settled: int = self.trainer.strategy.broadcast(found)
        if self._resumed:
            self._resumed["max_tokens"] = settled
        return settled

    def tokens_at_once(self, batch: Sequence[EditRequest]) -> int:
        """Tokens in one forward pass: as set, or as many as memory allows for such a batch."""
        devices = {parameter.device for parameter in self.language_model.model.parameters()}
        available = sum(map(capacity, devices))
        return self.target_settings.max_tokens or fitting_tokens(
            available, lambda tokens: self.memory_need(batch, tokens)
        )

    def memory_need(self, batch: Sequence[EditRequest], max_tokens: int) -> Need:
        """What a run over such batches will need."""
        lm, home = self.language_model, self.lender.home
        return need(
            shapes_of(lm.model, self.sites),
            batch_of(lm, batch, self.n_contexts + 1, self.context_length, max_tokens),
            self.method,
            home is not None and home.type != lm.device.type,
        )

    @doing("sampling context templates")
    def _choose_contexts(self) -> list[str]:
        """The context templates, the same in all processes; every request must have room behind the longest."""
        lm, seed = self.language_model, int(torch.initial_seed() % 2**31)
        count = self.n_contexts if isinstance(self.method, EditingMethod) else 0
        chosen = self._resumed.get("contexts") or sample_contexts(
            lm, count=count, length=self.context_length, seed=seed
        )
        contexts: list[str] = self.trainer.strategy.broadcast(chosen)
        longest = max(contexts, key=len)
        for request in self.requests:  # a record that is too long stops the run now, not after hours
            check_length(lm.tokenizer, request, longest, lm.config.max_position_embeddings)
        return contexts

    def _planned_requests(self) -> list[EditRequest]:
        """The requests that this run will edit, those of an interrupted run included."""
        loader = self.trainer.train_dataloader
        if not isinstance(loader, EditLoader):
            raise MisconfigurationException(
                f"`SequentialEditor` edits the batches of an `EditLoader`, found {type(loader).__name__}. Use "
                "`EditDataModule`, or wrap your requests: `EditLoader(requests, batch_size=100)`."
            )
        check_batch_size(self.method, loader.batch_size)
        return loader.requests[: int(self.trainer.num_training_batches) * loader.batch_size]

    @doing("measuring target norms")
    def _measure_anchors(self, known: Tensor) -> Tensor:
        """Norm of the unedited model's state at the target place of each request, `[N]`.

        The model is unedited at the start of a resumed run as well; the norms that its checkpoint holds are kept.
        """
        norms, size = [known.cpu()], ANCHOR_RECORDS
        starts = range(len(known), len(self.requests), size)
        for start in track(self.trainer)(starts, "target norms", len(starts)):
            chosen = self.requests[start : start + size]
            stream = SubjectStream(self.language_model, chosen, [""], self.layers[0], self.max_tokens)
            norms.append(stream.values(self.layers[-1]).norm(dim=1).cpu())
        return torch.cat(norms)

    # ------------------------------------------------------------------ the algorithm

    def training_step(self, batch: EditBatch, batch_idx: int) -> None:
        """Edit one batch: targets, then layer by layer keys, residuals and update.

        Lightning fires `on_before_optimizer_step` after each call of `solve_layer`: there SPHERE projects the update.
        A method without targets takes the way of `raise_likelihood`.
        """
        if isinstance(self.method, LikelihoodMethod):
            self.raise_likelihood(batch, self.method)
            return
        method = self.method
        targets = self.find_targets(batch)  # z [n, d_out]
        stream = self.subject_stream(batch, method)
        optimizer = cast(LayerwiseEdit, self.optimizers())
        self.solved = []

        def solve_layer() -> None:
            index = optimizer.active_group
            site, weight = self.sites[index], self.weights[index]
            keys = self._together(stream.keys(site), batch)  # [n, d_in], from the weights as they are now
            missing = targets.values - self._together(stream.values(self.layers[-1]), batch)  # [n, d_out]
            residuals = spread_residual(missing, len(self.sites) - index).to(weight.device)

            def solve(strength: float) -> Tensor:
                asked = Solved(keys, residuals)  # as they lie in memory: a copy could be rounded in another way
                if strength != 1:
                    asked = Solved(keys / strength**0.5, residuals / strength**0.5)
                self.solved[index:] = [asked]
                return method.update(asked.keys, asked.residuals, state)

            with self.lender.lend(self.states, index, self._places) as state:
                weight.grad = -self._solve(index, solve)

        if self._edit(batch, solve_layer):
            self.remember_keys(stream, batch, method)
        self.found = targets
        self._finish(batch, targets.scalars(self.target_settings))

    @doing("raising the likelihood of a batch")
    def raise_likelihood(self, batch: EditBatch, method: LikelihoodMethod) -> None:
        """Edit one batch without targets: layer by layer an update found from the likelihood itself."""
        likelihood = TargetLikelihood(
            self.language_model, batch.requests, self.sites, self.max_tokens, method.end_of_text
        )
        optimizer = cast(LayerwiseEdit, self.optimizers())

        def solve_layer() -> None:
            index = optimizer.active_group
            weight = self.weights[index]
            likelihood.advance(index)
            with self.lender.lend(self.states, index, self._places) as state:
                weight.grad = -self._solve(index, lambda _: method.update(likelihood, weight.detach(), state))

        if self._edit(batch, solve_layer):
            for index in range(len(self.sites)):
                likelihood.advance(index)
                self._remember(index, partial(method.remember, likelihood))
        self._finish(batch, likelihood.scalars())

    @doing("solving for an update")
    def _solve(self, index: int, solve: Callable[[float], Tensor]) -> Tensor:
        """Find one matrix's update; see `guarded`."""
        site = self.sites[index]
        adjustable = isinstance(self.method, EditingMethod)
        update, strength, reason = guarded(solve, self.weights[index].detach(), site.name, self.guard, adjustable)
        if reason:
            log.warning("Batch from edit %d: the update of %s %s; solved with a regulariser %g times as strong.",
                        self.edits_seen, site.name, reason, strength)  # fmt: skip
            self.retried.append({"start": self.edits_seen, "matrix": site.name, "reason": reason, "strength": strength})
        return update

    @doing("editing layer by layer")
    def _edit(self, batch: EditBatch, solve_layer: Callable[[], None]) -> bool:
        """Edit layer by layer; a batch whose update is refused on the way leaves the weights as they were."""
        optimizer = cast(LayerwiseEdit, self.optimizers())
        before = [weight.detach().clone() for weight in self.weights]
        try:
            optimizer.step(solve_layer)
        except RefusedUpdateError as refused:
            with torch.no_grad():
                for weight, kept in zip(self.weights, before, strict=True):
                    weight.copy_(kept)
                    weight.grad = None
            self.solved = []
            self._skip(batch, refused)
            return False
        finally:
            self.refresh_model()
        self._skipped_in_a_row = 0
        return True

    def _skip(self, batch: EditBatch, refused: RefusedUpdateError) -> None:
        cases = [request.case_id for request in batch.requests]
        self.skipped.append({"start": batch.start, "matrix": refused.matrix, "reason": refused.reason, "cases": cases})
        self._skipped_in_a_row += 1
        if self.guard.action == "stop" or self._skipped_in_a_row >= self.guard.max_skipped:
            raise UserError(
                f"After {self.edits_seen} edits {refused} ({self._skipped_in_a_row} batches in a row): the model has "
                "collapsed or the system is too ill-conditioned. Use a stronger regulariser (for example a larger "
                "ridge), a smaller targets.clamp, or --model.dtype=float32."
            ) from refused
        # As text: the exception holds the frames that it came through, and they hold matrices.
        log.warning("Batch from edit %d is skipped: %s.", batch.start, str(refused))

    @doing("optimising target values")
    def find_targets(self, batch: EditBatch) -> Targets:
        """Optimise the target values of a batch on the model as it is."""
        found = optimize_targets(
            self.language_model,
            self._share(batch),
            self.contexts,
            self.layers[-1],
            replace(self.target_settings, max_tokens=self.max_tokens),
        )
        targets = Targets(*(self._together(part, batch) for part in found))
        if not self.target_settings.anchor:
            return targets
        norms = self.anchors[batch.start : batch.start + len(batch.requests)]
        return targets.anchored(norms.to(targets.values))

    def _share(self, batch: EditBatch) -> tuple[EditRequest, ...]:
        """The requests whose targets and keys this process finds; all of them when it is alone."""
        return tuple(share_of(batch.requests, self.trainer.global_rank, self.trainer.world_size))

    def _together(self, part: Tensor, batch: EditBatch) -> Tensor:
        """The rows of the whole batch, from every process's share."""
        return gather_shares(part, len(batch.requests), self.trainer.world_size)

    def subject_stream(self, batch: EditBatch, method: EditingMethod) -> SubjectStream:
        """The batch's prompts, behind all contexts, on their way through the blocks."""
        return SubjectStream(
            self.language_model,
            self._share(batch),
            self.contexts,
            self.layers[0],
            self.max_tokens,
            method.plain_share,
        )

    @doing("remembering the batch's keys")
    def remember_keys(self, stream: SubjectStream, batch: EditBatch, method: EditingMethod) -> None:
        """Hand the batch's keys, measured on the edited model, to the method."""
        keys = stream.all_keys(self.sites)
        with exact_products():
            for index, part in enumerate(keys):
                each = self._together(part, batch)
                if self._remember(index, partial(method.remember, each)):
                    self.solved[index] = self.solved[index]._replace(remembered=each)

    def _remember(self, index: int, remember: Callable[[State], State]) -> bool:
        """Let the method take a batch into the state of one matrix; says whether it did."""
        with self.lender.lend(self.states, index, self._places) as state:
            changed = remember(state)
            if changed is state:
                return False
            self.states[index] = self.lender.take_back(changed, state, self.states[index])
            return True

    def _refresh(self, index: int) -> None:
        self.sites[index].write(self.weights[index])

    def refresh_model(self) -> None:
        """Copy every edited matrix into the language model."""
        for index in range(len(self.sites)):
            self._refresh(index)

    def _finish(self, batch: EditBatch, reached: dict[str, Tensor | float]) -> None:
        """Move on in the stream and log what the optimisation reached at its last look."""
        self.batch_start, self.edits_seen = batch.start, batch.start + len(batch.requests)
        scalars = {"edits": float(self.edits_seen)} | {f"target/{name}": value for name, value in reached.items()}
        if self.retried or self.skipped:
            scalars |= {"guard/retried": float(len(self.retried)), "guard/skipped": float(len(self.skipped))}
        self.log_dict(scalars, on_step=True, on_epoch=False, batch_size=1)

    # ------------------------------------------------------------------ validation

    def on_train_batch_start(self, batch: EditBatch, batch_idx: int) -> None:
        """Make sure that the run ends with a validation, whatever `val_check_interval` is."""
        last_step = self.trainer.max_steps == self.trainer.global_step + 1
        if (self.trainer.is_last_batch or last_step) and isinstance(self.trainer.val_check_batch, int):
            self.trainer.val_check_batch = batch_idx + 1

    def val_dataloader(self) -> DataLoader[ScoringBatch]:
        """The edits so far."""
        return DataLoader(_Edited(self), batch_size=None)

    def begin_validation(self) -> Iterator[ScoringBatch]:
        """Say what is scored now; Lightning asks for the first batch before any hook of the validation."""
        self.evaluator.begin(self.edits_seen, self.batch_start, is_last_step(self.trainer))
        return self.evaluator.batches()

    def on_validation_epoch_start(self) -> None:
        """Let the language model follow the weights: a callback may have swapped them."""
        self.refresh_model()

    @doing("validating")
    def validation_step(self, batch: ScoringBatch, batch_idx: int) -> None:
        """Score some edited requests."""
        self.evaluator.add(self.language_model, batch, self.unedited_answers)

    @doing("validating")
    def on_validation_epoch_end(self) -> None:
        """Log what was measured and go back to the weights being edited."""
        self._keep_scores(self.evaluator.scores(self.language_model))
        self.log_dict({**self.evaluator.scalars(self.after), "edits": float(self.edits_seen)}, batch_size=1)
        self.refresh_model()

    def _keep_scores(self, scores: dict[str, float]) -> None:
        lm, evaluator = self.language_model, self.evaluator
        self.after = scores
        if evaluator.last:
            self.failed, self.cases = evaluator.failed(lm), evaluator.cases(lm, self.unedited_cases)

    @doing("validating")
    def score_end(self) -> None:
        """Score the end of a run whose last validation did not know that it was the last: one that a guard stopped."""
        lm, edits, start = self.language_model, self.edits_seen, self.batch_start
        self._keep_scores(self.evaluator.score_end(lm, edits, start, self.unedited_answers))

    def on_validation_end(self) -> None:
        """Follow a callback that moved the weights after a validation."""
        self.refresh_model()

    def on_train_batch_end(self, *_: Any) -> None:
        """Follow a callback that moved the weights after the step, such as a guard that rolled a batch back."""
        self.refresh_model()

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what changes: edited matrices, the method's memory, random states, and all of `_KEPT`."""
        checkpoint["state_dict"] = {
            site.name: weight.detach() for site, weight in zip(self.sites, self.weights, strict=True)
        }
        checkpoint["sphere_pl"] = {
            **{name: getattr(self, name) for name in _KEPT},
            "states": [{name: state[name] for name in self.method.saved if name in state} for state in self.states],
            "requests": request_hashes(self.requests),
            "random": random_states(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the edited matrices; the rest follows when training starts."""
        if "sphere_pl" not in checkpoint:
            raise UserError("The checkpoint was not written by an editing run: it holds no `sphere_pl` entry.")
        self._resumed = {**checkpoint["sphere_pl"], "weights": checkpoint["state_dict"]}
        checkpoint["state_dict"] = {}
        if self._resumed["model_hash"] != fingerprint(self.language_model):
            raise UserError(
                f"The checkpoint was written for another model, or another version of it, than {self.name!r} is now: "
                "the unedited weights differ. Give --model.name and --model.dtype of the run that wrote it."
            )

    @doing("taking up the checkpoint")
    def _resume(self) -> None:
        resumed, self._resumed = self._resumed, {}
        with torch.no_grad():
            for site, weight in zip(self.sites, self.weights, strict=True):
                weight.copy_(resumed["weights"][site.name])
        self.states = [
            {**state, **self.lender.keep({name: tensor.to(weight.device) for name, tensor in saved.items()})}
            for state, saved, weight in zip(self.states, resumed["states"], self.weights, strict=True)
        ]
        for name in _KEPT:
            setattr(self, name, resumed[name])
        restore_random_states(resumed["random"])
        self.refresh_model()


def _device(name: str | None) -> torch.device | None:
    try:
        return None if name is None else torch.device(name)
    except RuntimeError as error:
        raise UserError(f"`statistics_device={name!r}` is no device. Give cpu, or leave it out.") from error


class _Edited(IterableDataset[ScoringBatch]):
    """Edited requests in scoring batches.

    Iterable, so that Lightning asks anew each time: a map-style data set would keep its first length.
    """

    def __init__(self, editor: SequentialEditor) -> None:
        self.editor = editor

    def __iter__(self) -> Iterator[ScoringBatch]:
        return self.editor.begin_validation()
