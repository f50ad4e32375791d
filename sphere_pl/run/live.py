"""The report of a run while it lasts."""

import logging
import time
from pathlib import Path
from typing import Any

import lightning as L
from typing_extensions import override

from sphere_pl.report import write_report
from sphere_pl.report.reading import FILES

log = logging.getLogger(__name__)

SHARE = 0.01  # of the run's time that writing may take


class LiveReport(L.Callback):
    """Write `report.html` while the run lasts; the page loads itself again.

    Written before a batch and after a validation, when all of their rows are in `metrics.csv`, but at most every
    `every` seconds, and never so often that writing would take more than a hundredth of the time. The page is replaced
    as a whole. A report that cannot be written is no reason to end a run: that is said once, and tried again.

    Args:
        run_dir: The run folder.
        every: Least number of seconds between two reports.
    """

    def __init__(self, run_dir: str, every: float = 10.0) -> None:
        self.run_dir = Path(run_dir)
        self.every = every
        self._due = -float("inf")
        self._failed = False

    @override
    def on_train_batch_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule", *_: Any) -> None:
        """Show the batches so far."""
        self._write(trainer)

    @override
    def on_validation_end(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Show the new scores."""
        if not trainer.sanity_checking:
            self._write(trainer)

    @override
    def on_exception(self, trainer: "L.Trainer", pl_module: "L.LightningModule", exception: BaseException) -> None:
        """Leave a page that says so and no longer loads itself again."""
        self._due = -float("inf")
        self._write(trainer, live=False)

    def _write(self, trainer: "L.Trainer", live: bool = True) -> None:
        began = time.monotonic()
        if began < self._due or not trainer.is_global_zero or not any((self.run_dir / n).is_file() for n in FILES):
            return
        try:
            write_report(self.run_dir, live)
        except Exception as error:
            if live and not self._failed:  # a run that ends badly has its own message
                log.warning("report.html could not be written while the run lasts: %s", error)
            self._failed = True
        ended = time.monotonic()
        self._due = ended + max(self.every, (ended - began) / SHARE)
