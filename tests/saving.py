"""A callback that saves a checkpoint in the middle of a run; what lies in a folder."""

from pathlib import Path
from typing import Any

import lightning as L


class SaveAt(L.Callback):
    """Save a checkpoint after a step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save, when it is due."""
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
