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
