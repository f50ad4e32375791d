"""Progress that people can read: edits done, time left, and how the model is holding up."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text
from typing_extensions import override

from sphere_pl.text.numbers import change, clock
from sphere_pl.trainers import callbacks_of

UNEDITED = "unedited model"  # what the evaluator calls its pass over every request

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


def track(trainer: "L.Trainer") -> Track:
    """Find out how long phases show their progress under this trainer.

    Returns:
        A function of an iterable, a description and its length that yields the iterable's items. It does just that if
        the trainer has no `EditProgress`.
    """
    shown = callbacks_of(trainer, EditProgress)
    return shown[0].phase if shown else untracked


def untracked(items: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    """Show no progress: a `Track` for those who want none."""
    return items


@contextmanager
def tracking(quiet: bool = False) -> "Iterator[Track]":
    """Show the progress of phases outside of a trainer.

    Args:
        quiet: Show nothing at all.
    """
    progress = EditProgress(quiet)
    try:
        yield progress.phase
    finally:
        progress.close()


class EditProgress(ProgressBar):
    """A bar of edits, with nested bars for the long phases around it.

    Written to standard error. Where that is no terminal, each validation prints one line instead.

    Args:
        quiet: Show nothing at all.
    """

    def __init__(self, quiet: bool = False) -> None:
        super().__init__()
        self.quiet = quiet
        self.console = Console(file=sys.stderr, quiet=quiet)
        self._progress: Progress | None = None
        self._edits: TaskID | None = None
        self._clock = _Clock()
        self._took: dict[str, float] = {}
        self._validation: TaskID | None = None
        self._loading: TaskID | None = None

    @override
    def disable(self) -> None:
        """Called by Lightning on all ranks but the first."""
        self.console = Console(file=sys.stderr, quiet=True)

    def _start(self) -> Progress:
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description:<16}"),
                BarColumn(bar_width=max(8, min(30, self.console.width - 95))),
                _Done(table_column=Column(no_wrap=True)),
                _Times(table_column=Column(no_wrap=True)),
                TextColumn("{task.fields[scores]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
                console=self.console,
                disable=not self.console.is_terminal,
            )
            self._progress.start()
        return self._progress

    def phase(self, items: Iterable[Any], description: str, total: int) -> Iterator[Any]:
        """Show a bar of its own while `items` are worked through."""
        progress = self._start()
        if not self.console.is_terminal:
            self.console.print(f"{description} ...", highlight=False)
        task = progress.add_task(description, total=total, left="", scores="")
        began = time.monotonic()
        try:
            for done, item in enumerate(items, start=1):
                yield item
                left = (time.monotonic() - began) / done * (total - done)
                progress.update(task, completed=done, left=clock(left) if done < total else "")
        finally:  # whoever asks for the items may have had enough of them
            self._took[description] = time.monotonic() - began
            progress.remove_task(task)

    @override
    def setup(self, trainer: "L.Trainer", pl_module: "L.LightningModule", stage: str) -> None:
        """Say that the language model is loaded, which Lightning has the module do next."""
        super().setup(trainer, pl_module, stage)
        name = getattr(pl_module, "name", None)
        if name is not None and getattr(pl_module, "lm", None) is None:
            self._loading = self._begin(f"loading {name}")

    @override
    def on_fit_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """It is loaded."""
        if self._progress is not None and self._loading is not None:
            self._progress.remove_task(self._loading)
        self._loading = None

    def _begin(self, description: str) -> TaskID:
        """Show a phase of which nobody knows how long it takes."""
        progress = self._start()
        if not self.console.is_terminal:
            self.console.print(f"{description} ...", highlight=False, markup=False)
        return progress.add_task(escape(description), total=None, left="", scores="")

    @override
    def on_train_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Begin to count edits; Lightning calls this before the module prepares itself."""
        super().on_train_start(trainer, pl_module)
        self._start()

    @override
    def on_train_batch_start(
        self, trainer: "L.Trainer", pl_module: "L.LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """Show the bar of edits from the first batch on."""
        if self._edits is None:
            total = len(getattr(pl_module, "requests", ())) or None
            done = getattr(pl_module, "edits_seen", 0)
            self._edits = self._start().add_task("editing", total=total, completed=done, left="", scores="")
            size = batch_size(trainer)
            every = min(float(trainer.val_check_batch or math.inf) * size, float(total or 0))
            evaluation: Any = getattr(pl_module, "evaluation", None)
            self._clock.start(done, total, int(every), evaluation.validation_records if evaluation else None)
            if UNEDITED in self._took:
                self._clock.scored(self._took[UNEDITED], total or 0)

    @override
    def on_train_batch_end(
        self, trainer: "L.Trainer", pl_module: "L.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar on."""
        self._update(trainer, pl_module)

    @override
    def on_validation_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Keep the time of validation apart: it grows with the number of edits. Show a bar of its own."""
        self._clock.validating()
        if self._progress is not None and self._edits is not None:
            evaluation: Any = getattr(pl_module, "evaluation", None)
            size = evaluation.batch_size if evaluation else 1
            total = math.ceil(self._clock.records(getattr(pl_module, "edits_seen", 0)) / size)
            self._validation = self._progress.add_task("validation", total=total, left="", scores="")

    @override
    def on_validation_batch_end(
        self,
        trainer: "L.Trainer",
        pl_module: "L.LightningModule",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move the bar of the validation on."""
        if self._progress is not None and self._validation is not None:
            self._progress.advance(self._validation)

    @override
    def on_validation_end(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Show the new scores; print a line where no bar can be drawn."""
        if self._progress is not None and self._validation is not None:
            self._progress.remove_task(self._validation)
        self._validation = None
        if self._edits is None:
            return
        self._clock.validated(getattr(pl_module, "edits_seen", 0))
        self._update(trainer, pl_module)
        if not self.console.is_terminal:
            done, total = getattr(pl_module, "edits_seen", 0), len(getattr(pl_module, "requests", ()))
            times = said(self._clock.elapsed(), self._clock.left(done))
            parts = [f"{done}/{total} edits", times, _scores(trainer)]
            self.console.print(", ".join(part for part in parts if part), highlight=False)

    def _update(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        done = getattr(pl_module, "edits_seen", 0)
        if self._progress is not None and self._edits is not None:
            self._progress.update(self._edits, completed=done, left=self._clock.left(done), scores=_scores(trainer))

    def close(self) -> None:
        """Give the terminal back."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._edits, self._validation, self._loading = None, None, None, None

    @override
    def on_train_end(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Leave the finished bar on the screen."""
        self.close()

    @override
    def on_exception(self, trainer: "L.Trainer", pl_module: "L.LightningModule", exception: BaseException) -> None:
        """Give the terminal back."""
        self.close()


class _Clock:
    """Estimates the time left: editing grows with the edits, a validation with the records that it scores.

    What a record takes to score is known from the pass over the unedited model before the first validation.
    """

    def __init__(self) -> None:
        self._began = 0.0
        self._first, self._total = 0, 0
        self._every, self._most = 0, 0
        self._validated, self._checked = 0.0, 0
        self._scoring, self._scored = 0.0, 0
        self._entered: float | None = None

    def start(self, done: int, total: int | None, every: int = 0, most: int | None = None) -> None:
        """Begin at `done` edits.

        Args:
            done: Edits that an earlier run has made.
            total: All that will be made.
            every: Edits between validations; the last batch is always followed by one.
            most: Most edits that a validation scores, but for the last one; all if None.
        """
        self._began, self._first, self._total = time.monotonic(), done, total or 0
        self._every, self._checked = every, done
        self._most = self._total if most is None else most

    def scored(self, seconds: float, records: int) -> None:
        """Take note of how long it took to score some records."""
        self._scoring += seconds
        self._scored += records

    def validating(self) -> None:
        """A validation begins."""
        self._entered = time.monotonic()

    def validated(self, done: int) -> None:
        """A validation over `done` edits has ended."""
        if self._entered is not None:
            seconds = time.monotonic() - self._entered
            self._validated += seconds
            self.scored(seconds, self.records(done))
            self._checked = done
        self._entered = None

    def left(self, done: int) -> str:
        """Time left as h:mm:ss, once something has been measured."""
        seconds = self.seconds_left(done)
        return "" if seconds is None else clock(seconds)

    def elapsed(self) -> float:
        """Seconds since the first batch."""
        return time.monotonic() - self._began

    def seconds_left(self, done: int) -> float | None:
        """Seconds left, None before the first batch is done and after the last validation."""
        edited, records = done - self._first, self._records_left()
        if edited <= 0 or (done >= self._total and not records):
            return None
        editing = (time.monotonic() - self._began - self._validated) / edited * (self._total - done)
        return editing + (self._scoring / self._scored * records if self._scored else 0.0)

    def records(self, done: int) -> int:
        """Records that the validation after `done` edits scores."""
        return done if done >= self._total else min(done, self._most)

    def _records_left(self) -> int:
        """Records that the validations still to come will score."""
        if not self._every or self._checked >= self._total:
            return 0
        points = range(self._every, self._total, self._every)
        return sum(self.records(point) for point in (*points, self._total) if point > self._checked)


def said(elapsed: float, left: str) -> str:
    """How long something has taken and will take.

    Example:
        >>> said(15, "0:00:01"), said(15, "")
        ('0:00:15 elapsed, about 0:00:01 left', '0:00:15 elapsed')
    """
    return f"{clock(elapsed)} elapsed" + (f", about {left} left" if left else "")


class _Done(ProgressColumn):
    """How many of how many; nothing where the number is unknown."""

    @override
    def render(self, task: Task) -> Text:
        """Draw it."""
        return Text("" if task.total is None else f"{int(task.completed)}/{int(task.total)}")


class _Times(ProgressColumn):
    """Time elapsed and time left, each with its name."""

    @override
    def render(self, task: Task) -> Text:
        """Draw it."""
        return Text(said(task.elapsed or 0.0, task.fields["left"]))


def batch_size(trainer: "L.Trainer") -> int:
    """Edits in a batch, as far as the loader says."""
    return int(getattr(trainer.train_dataloader, "batch_size", None) or 0)


def _scores(trainer: "L.Trainer") -> str:
    """Efficacy and energy change, as far as they have been measured."""
    shown = []
    values = cast(dict[str, Any], trainer.callback_metrics)
    if "val/efficacy" in values:
        shown.append(f"efficacy {float(values['val/efficacy']):.2f}")
    if "energy/change" in values:
        shown.append(f"energy {change(float(values['energy/change']))}")
    return ", ".join(shown)
