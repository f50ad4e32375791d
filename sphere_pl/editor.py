"""Sequential knowledge editing as a LightningModule: one edit batch, one step."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.utils.data import DataLoader, IterableDataset

from sphere_callbacks.functional import exact_products
from sphere_pl.architectures import EditSite
from sphere_pl.data.builtin import heldout_text
from sphere_pl.data.datamodule import EditDataModule, EditLoader
from sphere_pl.data.request import EditBatch, EditRequest
from sphere_pl.embedded import EMBEDDED_MODEL
from sphere_pl.errors import UserError
from sphere_pl.evaluation.editing import EditingMetrics, answer_requests
from sphere_pl.evaluation.scoring import perplexity
from sphere_pl.language_model import Dtype, LanguageModel, load_language_model
from sphere_pl.likelihood import TargetLikelihood
from sphere_pl.methods.base import EditingMethod, LikelihoodMethod, Method, State
from sphere_pl.methods.functional import spread_residual
from sphere_pl.optim import LayerwiseEdit
from sphere_pl.progress import UNEDITED, track
from sphere_pl.prompts import check_length
from sphere_pl.representations import SubjectStream
from sphere_pl.sampling import sample_contexts
from sphere_pl.statistics import StatisticsSettings, beginning, read_corpus, second_moments
from sphere_pl.targets import Targets, TargetSettings, optimize_targets

log = logging.getLogger(__name__)
ALL, LATEST = 0, 1  # the two validation streams


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured before, during and after editing.

    Args:
        text: A text file or hub data set to measure perplexity on; the built-in held-out text if None.
        perplexity_tokens: How many tokens of it to read; 0 turns perplexity off.
        batch_size: Records scored together.
    """

    text: str | None = None
    perplexity_tokens: int = 2048
    batch_size: int = 20

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.batch_size < 1:
            raise UserError(f"`evaluation.batch_size={self.batch_size}` must be at least 1.")
        if self.perplexity_tokens != 0 and self.perplexity_tokens < 2:
            raise UserError(f"`evaluation.perplexity_tokens={self.perplexity_tokens}` must be 0 (off) or at least 2.")


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
        contexts: How many sampled context templates to edit behind, beside the plain prompt.
        context_length: Tokens of each.
        dtype: Floating-point type of the language model; `auto` takes the checkpoint's own.
        revision: Branch, tag or commit of a hub model.
        trust_remote_code: Whether code from the hub may run.
        cache_dir: Where the embedded model is kept; the user's cache folder if None.

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
        contexts: int = 5,
        context_length: int = 10,
        dtype: Dtype = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
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
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint holds the edited matrices only
        self.method: EditingMethod | LikelihoodMethod = method
        self.layers, self.name = layers, name
        self.target_settings, self.statistics, self.evaluation = targets, statistics, evaluation
        self.n_contexts, self.context_length = contexts, context_length
        self._load = {
            "dtype": dtype,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
            "cache_dir": cache_dir,
        }
        self.lm: LanguageModel | None = None
        self.sites: list[EditSite] = []
        self.weights = nn.ParameterList()
        self.states: list[State] = []
        self.contexts: list[str] = []
        self.anchors = torch.zeros(0)
        self.requests: list[EditRequest] = []
        self.batch_start = self.edits_seen = 0
        self.unedited_answers: dict[int, list[list[int]]] = {}
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.streams = nn.ModuleList([EditingMetrics(), EditingMetrics()])
        self._text: str | None = None
        self._resumed: dict[str, Any] = {}

    # ------------------------------------------------------------------ set-up

    def setup(self, stage: str) -> None:
        """Refuse a method that cannot do what is asked of it, before anything is loaded."""
        name, most = self.method.name, self.method.max_layers
        if most is not None and len(self.layers) > most:
            raise MisconfigurationException(
                f"{name} edits at most {most} layer, but `layers={self.layers}` names {len(self.layers)}. "
                f"Choose one, for example --model.layers=[{self.layers[-1]}]."
            )
        if self.target_settings.anchor and isinstance(self.method, LikelihoodMethod):
            raise MisconfigurationException(
                f"`targets.anchor=true` rescales target values, but {name} has none. Leave it at false, or choose a "
                "method that solves for target values, such as AlphaEdit."
            )
        datamodule = getattr(self.trainer, "datamodule", None)
        if isinstance(datamodule, EditDataModule):
            self._check_batch_size(datamodule.batch_size)

    def _check_batch_size(self, size: int) -> None:
        most = self.method.max_batch_size
        if most is not None and size > most:
            raise MisconfigurationException(
                f"{self.method.name} makes at most {most} edit at a time, but a batch has {size}. "
                f"Set --data.batch_size={most}."
            )

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

    def configure_optimizers(self) -> LayerwiseEdit:
        """One parameter group for each edited matrix, under its Hugging Face name."""
        groups = [
            {"params": [weight], "name": site.name, "fan_in_fan_out": False}
            for site, weight in zip(self.sites, self.weights, strict=True)
        ]
        return LayerwiseEdit(groups, after_update=self._refresh)

    def on_fit_start(self) -> None:
        """Refuse trainer settings that would edit wrongly."""
        if self.trainer.precision != "32-true":
            raise MisconfigurationException(
                f"`Trainer(precision={self.trainer.precision!r})` would round or skip updates. Leave it at 32-true and "
                "choose the language model's type with --model.dtype."
            )
        if self.trainer.accumulate_grad_batches != 1:
            raise MisconfigurationException("Edits cannot be accumulated: leave trainer.accumulate_grad_batches at 1.")

    def on_train_start(self) -> None:
        """Measure the unedited model, prepare the method, sample contexts; on a resumed run, take them up again."""
        lm = self.language_model
        self.requests = self._planned_requests()
        moments: dict[str, Tensor] = {}
        if self.method.needs_second_moment:
            moments = second_moments(lm, self.sites, self.statistics, track(self.trainer))
        self.states = [
            self.method.initial_state(site.read(), moments[site.name].to(site.stored.device) if moments else None)
            for site in self.sites
        ]
        seed = int(torch.initial_seed() % 2**31)
        count = self.n_contexts if isinstance(self.method, EditingMethod) else 0
        self.contexts = self._resumed.get("contexts") or sample_contexts(
            lm, count=count, length=self.context_length, seed=seed
        )
        longest = max(self.contexts, key=len)
        for request in self.requests:  # a record that is too long stops the run now, not after hours
            check_length(lm.tokenizer, request, longest, lm.config.max_position_embeddings)
        if self.target_settings.anchor:
            self.anchors = self._measure_anchors(self._resumed.get("anchors", torch.zeros(0)))
        if self._resumed:
            self._resume()
        else:
            self._measure_unedited()

    def _planned_requests(self) -> list[EditRequest]:
        """The requests that this run will edit, those of an interrupted run included."""
        loader = self.trainer.train_dataloader
        if not isinstance(loader, EditLoader):
            raise MisconfigurationException(
                f"`SequentialEditor` edits the batches of an `EditLoader`, found {type(loader).__name__}. Use "
                "`EditDataModule`, or wrap your requests: `EditLoader(requests, batch_size=100)`."
            )
        self._check_batch_size(loader.batch_size)
        return loader.requests[: int(self.trainer.num_training_batches) * loader.batch_size]

    def _measure_unedited(self) -> None:
        """Keep the unedited model's scores and its answers to the neighbours."""
        metrics = EditingMetrics().to(self.device)
        size = self.evaluation.batch_size
        starts = range(0, len(self.requests), size)
        for start in track(self.trainer)(starts, UNEDITED, len(starts)):
            batch = EditBatch(tuple(self.requests[start : start + size]), start)
            answers = answer_requests(self.language_model, batch.requests)
            for place, each in enumerate(answers, start):
                self.unedited_answers[place] = [neighbor.predicted for neighbor in each.neighbors]
            metrics.update(batch, answers, self.unedited_answers)
        self.before = {**_summary(metrics), "perplexity": self._perplexity()}

    def _measure_anchors(self, known: Tensor) -> Tensor:
        """Norm of the unedited model's state at the target place of each request, `[N]`.

        The model is unedited at the start of a resumed run as well; the norms that its checkpoint holds are kept.
        """
        norms, size = [known.cpu()], self.evaluation.batch_size
        starts = range(len(known), len(self.requests), size)
        for start in track(self.trainer)(starts, "target norms", len(starts)):
            chosen = self.requests[start : start + size]
            stream = SubjectStream(self.language_model, chosen, [""], self.layers[0], self.target_settings.max_tokens)
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
        keys_stream, value_stream = self.subject_streams(batch, method)
        optimizer = cast(LayerwiseEdit, self.optimizers())

        def solve_layer() -> None:
            index = optimizer.active_group
            site, weight = self.sites[index], self.weights[index]
            keys = keys_stream.keys(site)  # [n, d_in], from the weights as they are now
            value_stream.advance(site.layer)
            missing = targets.values - value_stream.values(self.layers[-1])  # [n, d_out]
            residuals = spread_residual(missing, len(self.sites) - index)
            weight.grad = -self._solve(lambda: method.update(keys, residuals, self.states[index]), site)

        optimizer.step(solve_layer)
        self.refresh_model()
        self.remember_keys(keys_stream, method)
        self._finish(batch, targets)

    def raise_likelihood(self, batch: EditBatch, method: LikelihoodMethod) -> None:
        """Edit one batch without targets: layer by layer an update found from the likelihood itself."""
        likelihood = TargetLikelihood(
            self.language_model, batch.requests, self.sites, self.target_settings.max_tokens, method.end_of_text
        )
        optimizer = cast(LayerwiseEdit, self.optimizers())

        def solve_layer() -> None:
            index = optimizer.active_group
            site, weight = self.sites[index], self.weights[index]
            likelihood.advance(index)
            weight.grad = -self._solve(lambda: method.update(likelihood, weight.detach(), self.states[index]), site)

        optimizer.step(solve_layer)
        self.refresh_model()
        for index, state in enumerate(self.states):
            likelihood.advance(index)
            self.states[index] = method.remember(likelihood, state)
        self._finish(batch, likelihood)

    def _solve(self, solve: Callable[[], Tensor], site: EditSite) -> Tensor:
        """Run a method's solve in full float32, and refuse an update that is no number before it touches a weight."""
        try:
            with exact_products():
                update = solve()
            finite = bool(torch.isfinite(update).all())
        except LinAlgError:
            finite = False
        if not finite:
            raise UserError(
                f"After {self.edits_seen} edits the update of {site.name} is not finite: the model has collapsed or "
                "the system is too ill-conditioned. Use a stronger regulariser (for example a larger ridge), a smaller "
                "targets.clamp, or --model.dtype=float32."
            )
        return update

    def find_targets(self, batch: EditBatch) -> Targets:
        """Optimise the target values of a batch on the model as it is."""
        targets = optimize_targets(
            self.language_model, batch.requests, self.contexts, self.layers[-1], self.target_settings
        )
        if not self.target_settings.anchor:
            return targets
        norms = self.anchors[batch.start : batch.start + len(batch.requests)]
        return targets.anchored(norms.to(targets.values))

    def subject_streams(self, batch: EditBatch, method: EditingMethod) -> tuple[SubjectStream, SubjectStream]:
        """The batch's prompts on their way through the blocks: behind all contexts, and plain."""
        lm, first, tokens = self.language_model, self.layers[0], self.target_settings.max_tokens
        return (
            SubjectStream(lm, batch.requests, self.contexts, first, tokens, method.plain_share),
            SubjectStream(lm, batch.requests, [""], first, tokens),
        )

    def remember_keys(self, stream: SubjectStream, method: EditingMethod) -> None:
        """Hand the batch's keys, measured on the edited model, to the method."""
        stream.rewind()
        with exact_products():
            self.states = [
                method.remember(stream.keys(site), state) for site, state in zip(self.sites, self.states, strict=True)
            ]

    def _refresh(self, index: int) -> None:
        self.sites[index].write(self.weights[index])

    def refresh_model(self) -> None:
        """Copy every edited matrix into the language model."""
        for index in range(len(self.sites)):
            self._refresh(index)

    def _finish(self, batch: EditBatch, found: Targets | TargetLikelihood) -> None:
        """Move on in the stream and log what the optimisation reached at its last look."""
        self.batch_start, self.edits_seen = batch.start, batch.start + len(batch.requests)
        scalars: dict[str, float | Tensor] = {"edits": float(self.edits_seen)}
        if isinstance(found, Targets):
            scalars |= {
                "target/probability": found.probability.mean(),
                "target/loss": found.loss.mean(),
                "target/steps": found.steps.mean(),
                "target/clamped": found.clamped.float().mean(),
            }
        else:
            scalars |= {
                "target/probability": torch.exp(-found.losses).mean(),
                "target/loss": found.losses.mean(),
                "target/steps": float(found.evaluations),
            }
        self.log_dict(scalars, on_step=True, on_epoch=False, batch_size=1)

    # ------------------------------------------------------------------ validation

    def on_train_batch_start(self, batch: EditBatch, batch_idx: int) -> None:
        """Make sure that the run ends with a validation, whatever `val_check_interval` is."""
        last_step = self.trainer.max_steps == self.trainer.global_step + 1
        if (self.trainer.is_last_batch or last_step) and isinstance(self.trainer.val_check_batch, int):
            self.trainer.val_check_batch = batch_idx + 1

    def val_dataloader(self) -> list[DataLoader[EditBatch]]:
        """Two streams: all edits so far, and the batch just edited."""
        return [DataLoader(_Edited(self, latest_only=stream == LATEST), batch_size=None) for stream in (ALL, LATEST)]

    def on_validation_epoch_start(self) -> None:
        """Let the language model follow the weights: a callback may have swapped them."""
        self.refresh_model()
        for metrics in self._metrics():
            metrics.reset()

    def validation_step(self, batch: EditBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score some edited requests."""
        answers = answer_requests(self.language_model, batch.requests)
        self._metrics()[dataloader_idx].update(batch, answers, self.unedited_answers)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of both streams and the perplexity, and go back to the weights being edited."""
        everything, latest = self._metrics()
        scores = everything.compute()
        scalars = {f"val/{name}": value for name, value in scores.items()}
        scalars |= {f"batch/{name}": value for name, value in latest.compute().items()}
        current = self._perplexity()
        scalars |= {"val/perplexity": torch.tensor(current), "edits": torch.tensor(float(self.edits_seen))}
        self.log_dict({k: v for k, v in scalars.items() if not torch.isnan(v)}, batch_size=1)
        self.after = {**_summary(everything), "perplexity": current}
        self.refresh_model()

    def on_validation_end(self) -> None:
        """Follow a callback that moved the weights after a validation."""
        self.refresh_model()

    def _metrics(self) -> list[EditingMetrics]:
        return [cast(EditingMetrics, metrics) for metrics in self.streams]

    def _perplexity(self) -> float:
        if self.evaluation.perplexity_tokens == 0:
            return float("nan")
        if self._text is None:
            documents = read_corpus(self.evaluation.text) if self.evaluation.text else [heldout_text()]
            # Characters enough for the tokens, however many documents there are.
            self._text = beginning(documents, 20 * self.evaluation.perplexity_tokens)
        return perplexity(self.language_model, self._text, self.evaluation.perplexity_tokens)

    def on_train_batch_end(self, *_: Any) -> None:
        """Follow a callback that moved the weights after the step, such as a guard that rolled a batch back."""
        self.refresh_model()

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what changes: edited matrices, the method's memory, contexts, place in the stream, first scores."""
        checkpoint["state_dict"] = {
            site.name: weight.detach() for site, weight in zip(self.sites, self.weights, strict=True)
        }
        checkpoint["sphere_pl"] = {
            "states": [{name: state[name] for name in self.method.saved if name in state} for state in self.states],
            "contexts": self.contexts,
            "anchors": self.anchors,
            "edits_seen": self.edits_seen,
            "unedited_answers": self.unedited_answers,
            "before": self.before,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the edited matrices back; the rest follows when training starts."""
        if "sphere_pl" not in checkpoint:
            raise UserError("The checkpoint was not written by an editing run: it holds no `sphere_pl` entry.")
        saved = checkpoint["state_dict"]
        self._resumed = {**checkpoint["sphere_pl"], "weights": saved}
        checkpoint["state_dict"] = {}

    def _resume(self) -> None:
        with torch.no_grad():
            for site, weight in zip(self.sites, self.weights, strict=True):
                weight.copy_(self._resumed["weights"][site.name])
        self.states = [
            {**state, **{name: tensor.to(weight.device) for name, tensor in saved.items()}}
            for state, saved, weight in zip(self.states, self._resumed["states"], self.weights, strict=True)
        ]
        self.edits_seen = self._resumed["edits_seen"]
        self.unedited_answers = self._resumed["unedited_answers"]
        self.before = self._resumed["before"]
        self.refresh_model()


class _Edited(IterableDataset[EditBatch]):
    """Edited requests in scoring batches.

    Iterable, so that Lightning asks anew each time: a map-style data set would keep its first length.
    """

    def __init__(self, editor: SequentialEditor, latest_only: bool) -> None:
        self.editor = editor
        self.latest_only = latest_only

    def __iter__(self) -> Iterator[EditBatch]:
        stop = self.editor.edits_seen
        start = self.editor.batch_start if self.latest_only else 0
        size = self.editor.evaluation.batch_size
        for place in range(start, stop, size):
            yield EditBatch(tuple(self.editor.requests[place : min(place + size, stop)]), place)


def _summary(metrics: EditingMetrics) -> dict[str, float]:
    means = {name: float(value) for name, value in metrics.compute().items()}
    errors = {f"{name}_standard_error": float(value) for name, value in metrics.standard_errors().items()}
    return means | errors
