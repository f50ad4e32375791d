"""Weights above the edited layers, laid out for products once a run and not once a batch."""

from contextlib import ExitStack

import lightning as L
from typing_extensions import override

from sphere_pl.model.laid_out import laid_out
from sphere_pl.run.editor_callback import EditorCallback


class FrozenLayouts(EditorCallback):
    """Keep the blocks above the deepest edited layer laid out from the first batch to the last validation.

    Nothing edits them, so targets, the looks after a batch, validations and free answers all multiply by the same
    weights. The products are the same to the bit; what it takes is memory that targets take anyway, see `laid_out`.
    """

    def __init__(self) -> None:
        self._layouts = ExitStack()

    @override
    def on_train_epoch_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Lay them out, now that the run's tokens at once have been settled by the memory that is free."""
        self._layouts.close()
        if self.editor.layers:
            self._layouts.enter_context(laid_out(self.editor.language_model, max(self.editor.layers) + 1))

    @override
    def on_train_end(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Leave the blocks as they were."""
        self._layouts.close()

    @override
    def on_exception(self, trainer: "L.Trainer", pl_module: "L.LightningModule", exception: BaseException) -> None:
        """Leave the blocks as they were when a fit breaks off."""
        self._layouts.close()
