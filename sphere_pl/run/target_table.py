"""How well each request's target value was found, and what the batch made of it: targets.csv in the run folder."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from typing_extensions import override

from sphere_callbacks import SpectrumRestraint
from sphere_pl.evaluation.outcomes import Cause, Learned, Outcome, cause_of
from sphere_pl.run.editor_callback import EditorCallback
from sphere_pl.storage.files import append_text, write_text
from sphere_pl.trainers import callbacks_of, validation_follows

COLUMNS = (
    "edit", "case_id", "subject", "probability", "edited_probability", "loss", "steps", "clamped", "converged", "cause",
    "shares_key_with", "overwrites", "asked_after",
)  # fmt: skip
_HEAD = ",".join(COLUMNS) + "\n"
_NUMBERS = ("place", "probability", "loss", "steps", "clamped", "converged", "edited_probability", "right")


class TargetTable(EditorCallback):
    """One row a request, added to the file after every batch; nothing for methods without target values.

    The first batch of a run, or of a resumed one, writes the file again: an interrupted run may have left rows behind
    its checkpoint.

    `probability` and `loss` are those of the target value at the last look, `edited_probability` is that of the edited
    model right after the batch, `clamped` says that the shift ended on its norm bound, and `converged` that the loss
    fell below `targets.stop_loss` before the steps ran out. Where a validation follows, which asks all edits of the
    batch, its rows wait for what that finds: the model is asked once. `cause` says why an edit does not hold, after its
    batch and then at the end of the run. See `sphere_pl.evaluation.outcomes.Cause`. `shares_key_with` names edits of
    the same batch that have nearly the same key and therefore the same target, `overwrites` those of earlier batches;
    `asked_after` is the context that an edit is asked after whose subject would stand at an attention sink.

    Args:
        run_dir: The run folder; no file is written if None.
    """

    summary_name = "targets"

    def __init__(self, run_dir: str | None) -> None:
        self.path = None if run_dir is None else Path(run_dir) / "targets.csv"
        self._rows = torch.zeros(0, len(_NUMBERS), dtype=torch.float64)
        self._written: dict[int, str] = {}  # causes, by place
        self._restored = self._begun = False
        self._waiting: tuple[int, ...] = ()  # places of the last batch, until they have been asked
        self._versions: list[int] = []  # of the weights that it has left

    @override
    def on_train_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Begin with an empty table unless the run is resumed."""
        if not self._restored:
            self._rows = self._rows[:0]
            if trainer.is_global_zero and self.path is not None:
                self.path.unlink(missing_ok=True)
        self._restored = self._begun = False
        self._waiting = ()

    @override
    def on_train_batch_end(
        self, trainer: "L.Trainer", pl_module: "L.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the rows of the batch."""
        targets, places = self.editor.targets, self.editor.places
        if targets is None:
            return
        converged = ~targets.unconverged(self.editor.target_settings)
        unknown = torch.full((len(places), 2), math.nan)  # probability on the edited model, and whether it is right
        columns = [
            torch.tensor(places), targets.probability, targets.loss, targets.steps, targets.clamped, converged,
            *unknown.T,
        ]  # fmt: skip
        rows = torch.stack([each.double().cpu() for each in columns], dim=1)
        self._rows = torch.cat([self._rows, rows])
        if batch.again:  # what the last batch made of them counts
            first = self._rows[: -len(rows)]
            kept = torch.cat([first[~torch.isin(first[:, 0], rows[:, 0])], rows])
            self._rows, self._begun = kept[kept[:, 0].argsort()], False
        self._waiting, self._versions = tuple(places), self._current()
        if not (self._measured and validation_follows(trainer, batch_idx)):
            self._settle()

    @override
    def on_validation_epoch_end(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Take what the validation has found of the batch before it, unless it was on other weights."""
        if self._versions == self._current():
            self._settle()

    @override
    def on_train_batch_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule", *_: Any) -> None:
        """Ask before the weights move where no validation came after all."""
        self._settle()

    @override
    def on_train_end(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """The same after the last batch."""
        self._settle()

    @property
    def _measured(self) -> bool:
        """Whether edits are asked: something is to be measured, and on the weights that are being edited."""
        trainer = self.editor.trainer
        return bool(trainer.enable_validation) and not callbacks_of(trainer, SpectrumRestraint)

    def _current(self) -> list[int]:
        """How often each weight has been written: a callback may put others in their place for a validation."""
        return [weight._version for weight in self.editor.weights]

    def _settle(self) -> None:
        """Complete and write the rows that wait."""
        places, self._waiting = self._waiting, ()
        if not places:
            return
        mine = torch.isin(self._column("place"), torch.tensor(places, dtype=torch.float64))
        if self._measured:
            learned = self._learned(places)
            values = [[learned[int(place)].probability, learned[int(place)].right] for place in self._rows[mine, 0]]
            self._rows[mine, -2:] = torch.tensor(values, dtype=torch.float64)
        if self.editor.trainer.is_global_zero:
            self._write(self._rows[mine])
        self._begun = True

    def _learned(self, places: Sequence[int]) -> dict[int, Learned]:
        """How the requests of the last batch stand on the edited model: asked unless that has been done."""
        editor, known = self.editor, self.editor.evaluator.learned
        if self._versions != self._current() or any(place not in known for place in places):
            editor.refresh_model()
            editor.scores.ask_batch(editor.language_model, [editor.requests[place] for place in places], places)
        return {place: known[place] for place in places}

    @override
    def state_dict(self) -> dict[str, Tensor]:
        """The rows so far, complete."""
        self._settle()
        return {"rows": self._rows}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue below them."""
        self._rows, self._restored = state_dict["rows"], True

    @override
    def summary(self) -> dict[str, Any]:
        """How many requests did not converge, and how many shifts ended on their bound."""
        converged, clamped = self._column("converged"), self._column("clamped")
        return {"unconverged": int((converged == 0).sum()), "clamped": int(clamped.sum())}

    def _column(self, name: str) -> Tensor:
        return self._rows[:, _NUMBERS.index(name)]

    def found(self) -> dict[int, dict[str, float]]:
        """What is known of each request's target value, by place in the stream."""
        return _named(self._rows)

    def finish(self, causes: Mapping[int, Cause]) -> None:
        """Say at the end of the run why edits do not hold; the file is written again if that has changed."""
        final = {place: str(causes[place]) for place in map(int, self._column("place").tolist()) if place in causes}
        if self.path is not None and len(self._rows) and final != self._written:
            self._written = final
            write_text(self.path, _HEAD + self._text(self._rows))

    def _write(self, new: Tensor) -> None:
        if self.path is None:
            return
        if self._begun:
            self._written |= self._causes_after_batch(new)
            append_text(self.path, self._text(new))
        else:
            self._written = self._causes_after_batch(self._rows)
            write_text(self.path, _HEAD + self._text(self._rows))

    def _causes_after_batch(self, rows: Tensor) -> dict[int, str]:
        """Why edits were not right when their batch was done."""
        found = self.editor.scores.causes_found
        wrong = {place: bool(row["converged"]) for place, row in _named(rows).items() if row["right"] == 0}
        return {place: str(cause_of(Outcome(False, False, ok, found.get(place), False))) for place, ok in wrong.items()}

    def _text(self, rows: Tensor) -> str:
        """Rows as lines of CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        plan = self.editor.plan
        for row in rows.tolist():
            each, place = dict(zip(_NUMBERS, row, strict=True)), int(row[0])
            request = plan.requests[place]
            numbers = [_number(each[name]) for name in ("probability", "edited_probability", "loss")]
            flags = ["yes" if each[name] else "no" for name in ("clamped", "converged")]
            keys = (_edits(plan.sharing(place)), _edits(plan.overwritten(place)), request.form.before)
            about, cause = (place + 1, request.case_id, request.subject), self._written.get(place, "")
            writer.writerow((*about, *numbers, int(each["steps"]), *flags, cause, *keys))
        return text.getvalue()


def _edits(places: Sequence[int]) -> str:
    """Numbers of some edits, as column `edit` has them."""
    return " ".join(str(place + 1) for place in places)


def _named(rows: Tensor) -> dict[int, dict[str, float]]:
    """Rows by place, their numbers by name."""
    return {int(row[0]): dict(zip(_NUMBERS, row, strict=True)) for row in rows.tolist()}


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
