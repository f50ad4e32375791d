"""What a Lightning trainer knows, asked for in one place."""

from typing import TypeVar

import lightning as L

Kind = TypeVar("Kind", bound=L.Callback)


def callbacks_of(trainer: "L.Trainer", kind: type[Kind]) -> list[Kind]:
    """The trainer's callbacks of one kind, in their order."""
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]


def is_last_step(trainer: "L.Trainer") -> bool:
    """Whether nothing is trained after the step that has just been made."""
    return bool(trainer.is_last_batch or trainer.should_stop or trainer.global_step == trainer.max_steps)


def validation_follows(trainer: "L.Trainer", batch_idx: int) -> bool:
    """Whether a validation is known to come between a batch that is done and the next one, unless the run breaks off.

    False where validations go by the clock.
    """
    if not trainer.enable_validation or not isinstance(trainer.val_check_batch, int):
        return False
    whole_run = trainer.check_val_every_n_epoch is None  # batches are counted over epochs then
    done = trainer.fit_loop.epoch_loop.total_batch_idx if whole_run else batch_idx
    return (done + 1) % trainer.val_check_batch == 0
