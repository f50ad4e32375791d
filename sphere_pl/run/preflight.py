"""Lines at the start of a run: how much memory it will need, and what its second moments rest on."""

import lightning as L
from typing_extensions import override

from sphere_pl.data.datamodule import EditLoader
from sphere_pl.editing.diagnosis import tokens_line
from sphere_pl.editing.memory_estimate import Need
from sphere_pl.editor import SequentialEditor
from sphere_pl.evaluation.made_neighbors import count_made
from sphere_pl.progress import EditProgress
from sphere_pl.run.editor_callback import EditorCallback
from sphere_pl.run.summaries import method_name


class MemoryPreflight(EditorCallback):
    """Say in one line, before anything large is made, how much memory the run will need.

    A second line says, once they are there, from how many tokens second moments were computed.
    """

    @override
    def on_fit_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Show the estimate above the progress bar."""
        datamodule = getattr(trainer, "datamodule", None)
        if datamodule is None:
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            loader = datamodule.train_dataloader()
            if isinstance(callback, EditProgress) and isinstance(loader, EditLoader):
                callback.console.print(method_line(self.editor, trainer), highlight=False, markup=False)
                callback.console.print(f"Data: {datamodule.extent}.", highlight=False, markup=False)
                callback.console.print(side_effects(self.editor, loader), end="", highlight=False, markup=False)
                callback.console.print(estimate(self.editor, loader).line(), highlight=False)

    @override
    def on_train_epoch_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Show what the method rests on; the module has prepared it by now."""
        line = tokens_line(self.editor.diagnosis, self.editor.statistics.settled().source)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EditProgress) and line:
                callback.console.print(line, highlight=False, markup=False)


def method_line(editor: SequentialEditor, trainer: "L.Trainer") -> str:
    """What edits where, and whether SPHERE is on: files of methods turn it off."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    on = any(getattr(callback, "label", None) == "SPHERE" for callback in callbacks)
    state = "on" if on else "off (--config callbacks/sphere turns it on)"
    layers = ", ".join(map(str, editor.layers))
    return f"Method: {method_name(editor.method, callbacks)} in layers {layers}; SPHERE is {state}."


def side_effects(editor: SequentialEditor, loader: EditLoader) -> str:
    """A line on the neighbours that are made for records without any; empty if there are none."""
    settings = editor.evaluation
    line = count_made(loader.requests, settings.made_neighbors, settings.seed).line()
    return f"{line}\n" if line else ""


def estimate(editor: SequentialEditor, loader: EditLoader) -> Need:
    """What an editor will need for a stream, judged by its first batch."""
    requests = loader.requests[: loader.batch_size]
    return editor.preparation.memory_need(requests, editor.preparation.tokens_at_once(requests))
