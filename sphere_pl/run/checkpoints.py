"""Checkpoints of a run: when they are written, how many are kept, and how a run resumes from the newest whole one."""

import logging
import re
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from torch import Tensor
from typing_extensions import override

from sphere_pl.errors import UserError
from sphere_pl.history.fingerprints import check_settings
from sphere_pl.process.closing import after_results
from sphere_pl.process.failures import doing
from sphere_pl.process.interrupts import Interrupts, RunInterrupted
from sphere_pl.storage.checkpoint_file import DamagedCheckpointError, read_checkpoint, write_checkpoint
from sphere_pl.storage.files import remove_unfinished

log = logging.getLogger(__name__)

_NAME = re.compile(r"batch-(\d+)\.safetensors")


class CheckpointFiles(CheckpointIO):
    """Lets Lightning read and write checkpoints as safetensors files with checksums; see `checkpoint_file`."""

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write one; Lightning calls this on the first rank alone."""
        write_checkpoint(checkpoint, Path(path))

    @override
    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read one; its tensors lie on the CPU."""
        return read_checkpoint(Path(path))

    @override
    def remove_checkpoint(self, path: Any) -> None:
        """Delete one."""
        Path(path).unlink(missing_ok=True)


def checkpoint_paths(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    found = [(match, path) for path in folder.glob("*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=lambda pair: int(pair[0][1]))]


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; those passed over are named in a warning.

    Raises:
        UserError: If there are checkpoints, but none is whole.
    """
    paths = checkpoint_paths(folder)
    for path in reversed(paths):
        try:
            read_checkpoint(path)
        except DamagedCheckpointError as error:
            log.warning("%s Trying the one before.", error)
        else:
            return path
    if paths:
        raise UserError(f"None of the {len(paths)} checkpoints in {folder} is whole. Delete {folder} and begin again.")
    return None


class RunCheckpoints(L.Callback):
    """Save what a run needs to resume, between batches, and stop it cleanly when asked to.

    A checkpoint is written at the beginning of a batch: everything about the batches before it is finished then, its
    validation and its logged rows included. A run resumed from it does what the uninterrupted one would have done.

    Ctrl-C or SIGTERM finish the batch at hand, save, and end the fit with `RunInterrupted`; a second signal drops that
    batch. When a fit ends well its checkpoints are deleted.

    Args:
        every_n_batches: Batches between checkpoints; 0 writes none but the one at a signal.
        max_overhead: Most share of the run's time that checkpoints may take; a checkpoint that would take more is left
            out. 1 writes every one.
        keep: How many to keep.
        folder: Where; `checkpoints` in the trainer's `default_root_dir` if None.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self, every_n_batches: int = 1, max_overhead: float = 0.01, keep: int = 2, folder: str | None = None
    ) -> None:
        if every_n_batches < 0 or keep < 1 or not 0 < max_overhead <= 1:
            raise ValueError(
                f"`checkpoints.every_n_batches={every_n_batches}` must be at least 0, `keep={keep}` at least 1 and "
                f"`max_overhead={max_overhead}` in (0, 1]."
            )
        self.every_n_batches, self.max_overhead, self.keep = every_n_batches, max_overhead, keep
        self._given_folder = folder
        self.settings: dict[str, str] = {}
        self.seconds = 0.0  # spent on saving
        self._last_seconds = 0.0
        self._began = 0.0
        self._done = self._saved = -1
        self._loaded: dict[str, Any] | None = None
        self._saving = False
        self._interrupts = Interrupts()

    def folder(self, trainer: "L.Trainer") -> Path:
        """Where the checkpoints of a trainer lie."""
        return Path(self._given_folder or Path(trainer.default_root_dir) / "checkpoints")

    @override
    def setup(self, trainer: "L.Trainer", pl_module: "L.LightningModule", stage: str) -> None:
        """Read and write through `CheckpointFiles`."""
        trainer.strategy.checkpoint_io = CheckpointFiles()

    @override
    def on_fit_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Tidy the folder; a new run clears away the checkpoints of an earlier one."""
        if trainer.is_global_zero:
            remove_unfinished(self.folder(trainer))
            if trainer.ckpt_path is None:
                _clear(self.folder(trainer))

    @override
    def on_load_checkpoint(
        self, trainer: "L.Trainer", pl_module: "L.LightningModule", checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to resume under other settings, where they are known."""
        self._loaded = checkpoint.get("run")
        if self._loaded and self._loaded["settings"] and self.settings:
            check_settings(self._loaded["settings"], self.settings)

    @override
    def on_train_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Watch for signals; on a resumed run take logged metrics again and forget rows logged since."""
        self._interrupts.watch()
        self._began = time.monotonic()
        if self._loaded is not None:
            trainer.callback_metrics.update(self._loaded["metrics"])
            for logger, rows in zip(trainer.loggers, self._loaded["rows"], strict=False):
                if rows is not None and hasattr(logger, "rewind") and trainer.is_global_zero:
                    logger.rewind(rows)

    @override
    def on_train_batch_start(
        self, trainer: "L.Trainer", pl_module: "L.LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """Save what the batches before have left; stop here if asked to."""
        self._done = batch_idx
        loop = trainer.fit_loop.epoch_loop
        if self._loaded is not None:
            # Lightning counts one too many when the interrupted run had just validated: loggers would skip a step.
            loop._batches_that_stepped = self._loaded["stepped"]
            self._loaded = None
            self._saved = batch_idx
        if trainer.strategy.reduce_boolean_decision(self._interrupts.asked is not None, all=False):
            self._save(trainer)
            raise RunInterrupted(self._interrupts.asked or signal.SIGTERM)
        self._interrupts.patient = True
        if self._is_due(trainer):
            self._save(trainer)

    @override
    def on_train_epoch_end(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Save the finished stream: what is left to do is the report. Stop here if asked to."""
        self._done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        asked = trainer.strategy.reduce_boolean_decision(self._interrupts.asked is not None, all=False)
        if self.every_n_batches or asked:
            self._save(trainer)
        if asked:
            raise RunInterrupted(self._interrupts.asked or signal.SIGTERM)

    @override
    def on_train_end(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Give the signals back."""
        self._interrupts.release()

    @override
    def on_exception(self, trainer: "L.Trainer", pl_module: "L.LightningModule", exception: BaseException) -> None:
        """Give the signals back."""
        self._interrupts.release()

    @override
    def teardown(self, trainer: "L.Trainer", pl_module: "L.LightningModule", stage: str) -> None:
        """Called when all has ended well: the run has its results, and nobody will resume from its checkpoints."""
        if stage == "fit" and trainer.is_global_zero:
            with after_results("deleting the checkpoints"):
                _clear(self.folder(trainer))

    @override
    def on_save_checkpoint(
        self, trainer: "L.Trainer", pl_module: "L.LightningModule", checkpoint: dict[str, Any]
    ) -> None:
        """Write down what belongs to the boundary between two batches; other callbacks save elsewhere."""
        if not self._saving:
            return
        checkpoint["run"] = {
            "settings": dict(self.settings),
            "stepped": trainer.fit_loop.epoch_loop._batches_that_stepped,
            "metrics": {name: value for name, value in trainer.callback_metrics.items() if isinstance(value, Tensor)},
            "rows": [_rows(logger) for logger in trainer.loggers],
        }
        _at_boundary(checkpoint["loops"]["fit_loop"], self._done, trainer.num_training_batches)

    def _is_due(self, trainer: "L.Trainer") -> bool:
        """Whether the interval has passed and the time allows it; the first rank's clock decides for all."""
        if not self.every_n_batches or not self._done or self._done % self.every_n_batches or self._done == self._saved:
            return False
        allowed = self.max_overhead * (time.monotonic() - self._began)
        affordable = self.max_overhead == 1 or not self._last_seconds or self.seconds + self._last_seconds <= allowed
        return bool(trainer.strategy.broadcast(affordable))

    @doing("writing a checkpoint")
    def _save(self, trainer: "L.Trainer") -> None:
        """Write a checkpoint, and only then delete the ones that are not kept."""
        if self._done == self._saved:
            return
        began, self._saving = time.monotonic(), True
        try:
            trainer.save_checkpoint(self.folder(trainer) / f"batch-{self._done:06d}.safetensors")
        finally:
            self._saving = False
        self._saved = self._done
        if trainer.is_global_zero:
            for path in checkpoint_paths(self.folder(trainer))[: -self.keep]:
                path.unlink(missing_ok=True)
        self._last_seconds = time.monotonic() - began
        self.seconds += self._last_seconds


def _rows(logger: Any) -> int | None:
    """How many rows a logger that can be rewound has written; the one of a fast_dev_run has every attribute."""
    rows = getattr(logger, "rows", None)
    return rows if isinstance(rows, int) else None


def _clear(folder: Path) -> None:
    """Delete all checkpoints of a folder, and the folder if nothing else is in it."""
    for path in checkpoint_paths(folder):
        path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _at_boundary(loop: dict[str, Any], done: int, total: float) -> None:
    """Let Lightning's counters say that `done` of the epoch's `total` batches are finished and no other has begun.

    At the beginning of a batch, the counters already hold that batch as ready; at the end of an epoch, they hold the
    epoch as processed and a resumed run would skip its end.
    """
    progress = loop["epoch_loop.batch_progress"]
    for counts, finished in ((progress["current"], done), (progress["total"], progress["total"]["completed"])):
        counts.update(dict.fromkeys(("ready", "started", "processed", "completed"), finished))
    progress["is_last_batch"] = done >= total
    epochs = loop["epoch_progress"]
    for counts in (epochs["current"], epochs["total"]):
        counts.update(processed=counts["completed"])
    for state in loop["state_dict"].get("combined_loader", []):
        if "done" in state:
            state["done"] = done
