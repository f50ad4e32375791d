"""The weights that are looked at, where a callback keeps others for editing on."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import lightning as L

from sphere_callbacks import SpectrumRestraint
from sphere_pl.editor import SequentialEditor
from sphere_pl.trainers import callbacks_of


@contextmanager
def evaluated_weights(trainer: "L.Trainer", editor: SequentialEditor) -> Iterator[None]:
    """Hold the weights that validation scores, in the editor and in its language model.

    A `SpectrumRestraint` (PRUNE) swaps them around validation and saving; without one they are the edited weights.
    """
    with ExitStack() as stack:
        for restraint in callbacks_of(trainer, SpectrumRestraint):
            stack.enter_context(restraint.swapped(editor))
        editor.refresh_model()
        yield
    editor.refresh_model()
