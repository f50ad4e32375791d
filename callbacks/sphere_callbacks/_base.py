"""What the callbacks share: which weights they look at, where they log, and when their state starts afresh."""

import logging
from collections.abc import Container, Iterable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from sphere_callbacks._weights import EditedWeight, edited_weights, require_weights
from sphere_callbacks.loop import Loop


class WeightCallback(Callback):
    """Base of the callbacks that look at the matrices in the optimizers' param groups.

    State starts afresh with every fit, unless ``load_state_dict`` was called since the trainer last ended a fit, a
    validation, a test or a prediction: a checkpoint that was loaded to be evaluated is no start of a later fit.

    Args:
        modules: Shell-style pattern for the names of the weights; ``None`` takes every floating matrix.

    Raises:
        TypeError: If the pattern is not one string.
    """

    def __init__(self, modules: str | None = None) -> None:
        if not isinstance(modules, str | None):
            raise TypeError(
                f"`{type(self).__name__}(modules={modules!r})` must be one shell-style pattern, such as "
                "'*down_proj*' or '*[qk]_proj*', or None for every matrix."
            )
        self.modules = modules
        self._weights: list[EditedWeight] = []
        self._restored = False
        self._recorded: dict[str, Any] = {}

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Refuse strategies that hide the matrices; warn of a second callback that logs under the same names."""
        if stage == "fit" and isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy):
            raise MisconfigurationException(
                f"`{type(self).__name__}` needs whole matrices, but {type(trainer.strategy).__name__} shards them. "
                "Use a strategy that keeps parameters whole, such as ddp."
            )
        others: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        same = [each for each in others if each.state_key == self.state_key]
        if stage == "fit" and len(same) > 1 and same[-1] is self:
            logging.getLogger(type(self).__module__).warning(
                "`%s` stands %d times in `trainer.callbacks`. Each acts, but all log under the same names, and what "
                "the last one logs is kept.",
                type(self).__name__,
                len(same),
            )

    @override
    @torch.no_grad()
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Find the weights; drop the state of an earlier fit unless it was loaded for this one.

        Raises:
            MisconfigurationException: If no weight is found, or other arguments made what was loaded.
        """
        self._weights = require_weights(trainer.optimizers, pl_module, self.modules, type(self).__name__)
        if not self._restored:
            self._reset()
        elif self._recorded != self._arguments():
            self._resume_with_other_arguments()
        self._restored = False

    @override
    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Let the next fit start afresh."""
        self._restored = False

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state; the next fit continues from it."""
        self._restored = True
        self._recorded = state_dict.get("arguments", self._arguments())

    @override
    @torch.no_grad()
    def on_train_batch_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", *_: Any, **__: Any) -> None:
        """Take in the weights that have joined the optimizers, such as those of a layer that was unfrozen."""
        known = {id(weight.parameter) for weight in self._weights}
        now = edited_weights(trainer.optimizers, pl_module, self.modules)
        if any(id(weight.parameter) not in known for weight in now):
            self._weights = require_weights(trainer.optimizers, pl_module, self.modules, type(self).__name__)
            self._record(trainer, pl_module)

    def _reset(self) -> None:
        """Forget everything that belongs to one fit."""

    def _arguments(self) -> dict[str, Any]:
        """The arguments that what is kept from one batch to the next depends on; they are part of the state."""
        return {}

    def _resume_with_other_arguments(self) -> None:
        owner = type(self).__name__
        now, then = (
            f"`{owner}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})`"
            for arguments in (self._arguments(), self._recorded)
        )
        raise MisconfigurationException(
            f"{now} resumes a fit that was recorded by {then}, and cannot go on from what that has kept of the start. "
            "Resume with the arguments of that fit, or start a new one."
        )

    def _has_directions(self, name: str, weight: Tensor, warned: set[str]) -> bool:
        """Tell whether a weight is finite; say once that it is not, and so has no principal directions."""
        finite = bool(weight.isfinite().all())
        if not finite and name not in warned:
            warned.add(name)
            log = logging.getLogger(type(self).__module__)
            log.warning("`%s` has NaN or infinity: its principal directions are undefined.", name)
        return finite

    def _record(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Note what weights are before their first update, where that is not known yet."""

    def _require_recorded(self, name: str, record: Container[str]) -> None:
        """Refuse an update of a weight that was never recorded."""
        if name not in record:
            raise RuntimeError(
                f"`{type(self).__name__}` knows nothing of `{name}` before its first update. Call `on_train_start` "
                "before the first batch, and `on_train_batch_start` before each, as a Trainer does."
            )

    def _with_grad(self, optimizer: Optimizer, pl_module: "pl.LightningModule") -> Iterable[EditedWeight]:
        return edited_weights([optimizer], pl_module, self.modules, with_grad=True)


class StartCallback(WeightCallback):
    """Base of the callbacks that compare every so many batches with what they kept of each weight at the start.

    Args:
        every_n_batches: Batches between comparisons.
        modules: Shell-style pattern for the names of the weights; ``None`` takes every floating matrix.

    Raises:
        ValueError: If the count is below 1.
    """

    def __init__(self, every_n_batches: int, modules: str | None) -> None:
        super().__init__(modules)
        if every_n_batches < 1:
            raise ValueError(f"`{type(self).__name__}(every_n_batches={every_n_batches})` must be at least 1.")
        self.every_n_batches = every_n_batches
        self._start: dict[str, Tensor] = {}
        self._batches = 0

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return what was kept of the start, by which arguments, and the count of batches."""
        return {"start": dict(self._start), "batches": self._batches, "arguments": self._arguments()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the start of the interrupted fit."""
        super().load_state_dict(state_dict)
        self._start, self._batches = dict(state_dict["start"]), state_dict["batches"]

    @override
    def _reset(self) -> None:
        self._start, self._batches = {}, 0

    def _due(self) -> bool:
        """Count a batch; tell whether it is one to compare after."""
        self._batches += 1
        return self._batches % self.every_n_batches == 0


def require_record(trainer: "pl.Trainer", callback: str, record: str) -> None:
    """Refuse a resumed fit whose checkpoint lacks what a callback records before the first update.

    The weights at hand have been updated already; taking them for the first ones would go unnoticed.

    Args:
        trainer: The trainer, or the loop that stands in for it.
        callback: The callback with its arguments, as the user wrote it.
        record: What is missing.

    Raises:
        MisconfigurationException: If the fit resumes from a checkpoint that was saved after the first update.
    """
    if not isinstance(trainer, Loop) and trainer.ckpt_path and trainer.global_step > 0:
        raise MisconfigurationException(
            f"`{callback}` needs {record}, and the checkpoint {trainer.ckpt_path} has no record of them: it was saved "
            "by a fit without this callback. Resume without it, or start a new fit with it."
        )


def log_values(trainer: "pl.Trainer", pl_module: "pl.LightningModule", values: Mapping[str, Tensor]) -> None:
    """Log scalars of one batch, through the module under a trainer and through the :class:`Loop` without one.

    Args:
        trainer: The trainer or the loop that stands in for it.
        pl_module: The module that is trained.
        values: Scalars by name.
    """
    if not values:
        return
    if isinstance(trainer, Loop):
        trainer.log_dict(values)
    else:
        pl_module.log_dict(dict(values), on_step=True, on_epoch=False, batch_size=1)


def logged_step(trainer: "pl.Trainer") -> int:
    """Tell under which step the loggers keep what the module has logged of this batch and of its validation.

    A trainer counts ``global_step`` when the optimizer steps, and the batches by which it logs after the validation: by
    then the first is one ahead.
    """
    if isinstance(trainer, Loop):
        return trainer.global_step
    return trainer.fit_loop.epoch_loop._batches_that_stepped  # where Lightning's own callbacks read it


def is_fitting(trainer: "pl.Trainer") -> bool:
    """Tell whether a hook runs inside a fit, sanity check excluded."""
    if isinstance(trainer, Loop):
        return True
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
