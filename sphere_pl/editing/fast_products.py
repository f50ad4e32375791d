"""Fast products of a run's language model, for as long as it edits."""

from contextlib import ExitStack
from typing import Any

import lightning as L

from sphere_pl.model.products import fast_products


class FastProducts(L.Callback):
    """Let the model multiply as fast as its CPU can when the run begins, and leave it as it was however it ends.

    `SequentialEditor` brings it along.
    """

    def __init__(self) -> None:
        self._products = ExitStack()

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Before anything is measured."""
        edited = [site.module for site in pl_module.sites]
        self._products.enter_context(fast_products(pl_module.language_model, edited))

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """After the last validation."""
        self._products.close()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Whatever has happened."""
        self._products.close()
