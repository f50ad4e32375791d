"""Follow the general abilities of a model while it is edited."""

from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.utilities.seed import isolate_rng
from typing_extensions import override

from sphere_pl.abilities import harness
from sphere_pl.abilities.evaluate import Score, evaluate, fingerprint_of, load_items, task_named
from sphere_pl.abilities.journal import Journal, weights_digest
from sphere_pl.abilities.task import Item
from sphere_pl.errors import UserError
from sphere_pl.process.failures import doing
from sphere_pl.progress import track
from sphere_pl.run.editor_callback import EditorCallback
from sphere_pl.run.evaluated_weights import evaluated_weights
from sphere_pl.trainers import is_last_step


class GeneralAbilities(EditorCallback):
    """Score general abilities before the first edit, every few batches and at the end.

    Logged as `abilities/<task>`. Does nothing without tasks. The unedited model is scored once and its scores travel in
    the checkpoint; each finished score is also written to `keep`, so that a run that is interrupted within an
    evaluation and started again scores only the tasks that are left.

    Args:
        tasks: What to score: boolq, cola, gsm8k, mmlu, mrpc, nq, rte, sst2, or with the authors' prompts and scores
            boolq_one_token, gsm8k_gold_hint, nq_with_passage, rte_one_token.
        every: Batches between evaluations; only before the first edit and at the end if None.
        limit: Items of each task; all if None.
        data_dir: Folder with the tasks' data; the hub if None.
        seed: Seed of the choice of `limit` items; the first ones, as the authors take them, if None.
        batch_tokens: Tokens in one forward pass.
        lm_eval_tasks: Tasks of lm-evaluation-harness, by name or as YAML files, logged as `abilities/lm_eval_<task>`.
            Needs the extra `lm-eval`.
        keep: JSON file for finished scores; `abilities.json` in the run folder on the command line, none otherwise.

    Raises:
        UserError: If a task is unknown, a number out of range, data missing or lm-evaluation-harness not installed.
    """

    summary_name = "abilities"
    otherwise = "Score any other model with `sphere_pl.abilities.evaluate`."

    def __init__(
        self,
        tasks: list[str] | None = None,
        every: int | None = None,
        limit: int | None = 200,
        data_dir: str | None = None,
        seed: int | None = 0,
        batch_tokens: int = 8192,
        lm_eval_tasks: list[str] | None = None,
        keep: str | None = None,
    ) -> None:
        for name, value in (("every", every), ("limit", limit), ("batch_tokens", batch_tokens)):
            if value is not None and value < 1:
                raise UserError(f"--abilities.{name}={value} must be at least 1.")
        self.tasks = [task_named(name) for name in tasks or []]
        self.lm_eval_tasks = list(lm_eval_tasks or [])
        self.every, self.limit, self.data_dir, self.seed = every, limit, data_dir, seed
        self.batch_tokens = batch_tokens
        self.journal = Journal(keep)
        self.before: dict[str, Score] = {}
        self.after: dict[str, Score] = {}
        self._items: dict[str, list[Item]] = {}
        self._manager: Any = None

    def load(self) -> None:
        """Read the items, once; a mistake in the data or a missing extra shows now and not after the first edits."""
        for task in self.tasks:
            if task.name not in self._items:
                self._items[task.name] = load_items(task, self.data_dir, self.limit, self.seed)
        if self.lm_eval_tasks and self._manager is None:
            self._manager = harness.find_tasks(self.lm_eval_tasks)

    @override
    def setup(self, trainer: "L.Trainer", pl_module: "L.LightningModule", stage: str) -> None:
        """Read the items."""
        super().setup(trainer, pl_module, stage)
        self.load()

    @override
    def on_train_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Score the unedited model: Lightning calls this before a resumed run's weights are restored."""
        if self._active() and not self.before:
            self.before = self._measure(trainer)
            _log(trainer, self.before, edits=0)

    @override
    def on_train_batch_end(
        self, trainer: "L.Trainer", pl_module: "L.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Score the edited model when it is due."""
        due = self.every is not None and trainer.global_step % self.every == 0
        if self._active() and (due or is_last_step(trainer)):
            self.after = self._measure(trainer)
            _log(trainer, self.after, self.editor.edits_seen)

    @override
    def state_dict(self) -> dict[str, Any]:
        """The scores so far."""
        return {
            when: {name: score.to_json() for name, score in scores.items()}
            for when, scores in (("before", self.before), ("after", self.after))
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the scores back; the unedited model is never scored twice."""
        self.before, self.after = (
            {name: Score.from_json(fields) for name, fields in state_dict[when].items()} for when in ("before", "after")
        )

    @override
    def summary(self) -> dict[str, Any]:
        """Each task's score before and after editing, as results.json holds it; None where it was not measured."""
        return {
            name: {
                "metric": before.metric,
                "before": before.value,
                "before_standard_error": before.standard_error,
                "after": self.after[name].value if name in self.after else None,
                "standard_error": self.after[name].standard_error if name in self.after else None,
                "items": before.items,
            }
            for name, before in self.before.items()
        }

    def _active(self) -> bool:
        return bool(self.tasks or self.lm_eval_tasks)

    @doing("measuring general abilities")
    def _measure(self, trainer: "L.Trainer") -> dict[str, Score]:
        """Score the weights as they are evaluated; the run's random state stays as it was."""
        editor, show = self.editor, track(trainer)
        lm = editor.language_model
        with evaluated_weights(trainer, editor), isolate_rng():
            digest = weights_digest(lm, list(editor.weights))
            scores = {
                task.name: self._once(
                    f"{digest}-{fingerprint_of(task, items)}",
                    lambda task=task, items=items: evaluate(lm, task, items, self.batch_tokens, show),  # type: ignore[misc]
                    {"task": task.name, "edits": editor.edits_seen},
                    trainer.is_global_zero,
                )
                for task, items in ((task, self._items[task.name]) for task in self.tasks)
            }
            if self.lm_eval_tasks:
                scores |= harness.evaluate(lm, self.lm_eval_tasks, self._manager, self.limit, self.batch_tokens)
        return scores

    def _once(self, key: str, measure: Callable[[], Score], about: dict[str, Any], write: bool) -> Score:
        """The kept score, or a new one that is kept."""
        found = self.journal.find(key)
        if found is None:
            found = measure()
            if write:
                self.journal.keep(key, found, **about)
        return found


def _log(trainer: "L.Trainer", scores: dict[str, Score], edits: int) -> None:
    """Write scores to the loggers, a row of their own: `self.log` would repeat them in each batch that follows."""
    scalars = {f"abilities/{name}": score.value for name, score in scores.items()}
    for logger in trainer.loggers:
        logger.log_metrics({**scalars, "edits": float(edits)}, step=trainer.global_step)
