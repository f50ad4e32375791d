"""What a run leaves for one that continues it, and takes from the one that it continues."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch import Callback
from typing_extensions import override

from sphere_callbacks import CollapseGuard, SpectrumRestraint
from sphere_pl.history.continuation import KEPT, memory_to_keep
from sphere_pl.process.closing import after_results
from sphere_pl.run.editor_callback import EditorCallback
from sphere_pl.storage.checkpoint_file import write_checkpoint
from sphere_pl.storage.random_states import random_states
from sphere_pl.trainers import callbacks_of

# These belong to one run: its files, its clock, its bars.
_OF_ONE_RUN = ("sphere_pl.", "lightning.")


class Handover(EditorCallback):
    """Write `continue.safetensors` at the end of a fit; hand its contents on at the beginning of the next.

    It holds what the edit log does not: random states, how many tokens go through the model at once, the states of the
    callbacks that belong to the stream and not to one run (directions that a projection keeps, weights that a guard
    goes back to), and what a method remembers that has no keys in the log. It must stand after the run's results.

    Args:
        run_dir: The run folder; what would be written stays in `kept` if None, with all that the method remembers.
    """

    def __init__(self, run_dir: str | None) -> None:
        self.path = None if run_dir is None else Path(run_dir) / KEPT
        self.kept: dict[str, Any] = {}
        self.settings = ""
        self._fresh: list[CollapseGuard] = []

    def depend_on(self, settings: Mapping[str, Any]) -> None:
        """Say what the callbacks' states rest on; they are handed on to a run with the same settings."""
        self.settings = json.dumps(settings, sort_keys=True, default=str)

    @override
    def on_fit_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Give callbacks the states that they had at the end of the earlier run."""
        earlier = self.editor.earlier
        if earlier is None or trainer.ckpt_path is not None:
            return
        known = earlier.kept.get("callbacks", {}) if earlier.kept.get("settings") == self.settings else {}
        for callback in _of_the_stream(trainer):
            if callback.state_key in known:
                callback.load_state_dict(known[callback.state_key])
        self._fresh = [each for each in callbacks_of(trainer, CollapseGuard) if each.state_key not in known]

    @override
    def on_train_batch_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule", *_: Any) -> None:
        """Let a guard go back to the earlier run's weights, not to the unedited ones that it saw at the start."""
        while self._fresh:
            self._fresh.pop().take_for_good()

    @override
    def on_fit_end(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Write what the next run needs, on the first rank."""
        if not trainer.is_global_zero:
            return
        self.kept = self._to_keep(trainer)
        if self.path is not None:
            with after_results(KEPT):
                write_checkpoint(self.kept, self.path)

    def _to_keep(self, trainer: "L.Trainer") -> dict[str, Any]:
        editor = self.editor
        kept: dict[str, Any] = {"settings": self.settings, "random": random_states(), "max_tokens": editor.max_tokens}
        kept["callbacks"] = {each.state_key: state for each in _of_the_stream(trainer) if (state := each.state_dict())}
        memory = memory_to_keep(editor.method, editor.states, solvable=self.path is not None)
        if memory is not None:
            kept["memory"] = memory
        if callbacks_of(trainer, SpectrumRestraint):  # edited.safetensors holds the restrained ones
            kept["live"] = editor.matrices
        return kept


def _of_the_stream(trainer: "L.Trainer") -> list[Callback]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [each for each in callbacks if not type(each).__module__.startswith(_OF_ONE_RUN)]
