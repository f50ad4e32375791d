"""A run's frozen weights in the layout that products want, for as long as it edits."""

from contextlib import ExitStack
from typing import Any

import lightning as L

from sphere_pl.model.laid_out import laid_out


class FrozenLayouts(L.Callback):
    """Lay out what the run does not edit when it begins, and leave the model as it was however it ends.

    `SequentialEditor` brings it along.
    """

    def __init__(self) -> None:
        self._layouts = ExitStack()

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Before anything is measured."""
        edited = [site.module for site in pl_module.sites]
        self._layouts.enter_context(laid_out(pl_module.language_model, edited))

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """After the last validation."""
        self._layouts.close()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Whatever has happened."""
        self._layouts.close()
