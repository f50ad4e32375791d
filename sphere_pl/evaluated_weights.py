"""The weights that are looked at, where a callback keeps others for editing on."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import lightning as L

from sphere_callbacks import SpectrumRestraint
from sphere_pl.editor import SequentialEditor


@contextmanager
def evaluated_weights(trainer: "L.Trainer", editor: SequentialEditor) -> Iterator[None]:
    """Hold the weights that validation scores, in the editor and in its language model.

    A `SpectrumRestraint` (PRUNE) swaps them around validation and saving; without one they are the edited weights.
    """
    with ExitStack() as stack:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, SpectrumRestraint):
                stack.enter_context(callback.swapped(editor))
        editor.refresh_model()
        yield
    editor.refresh_model()
