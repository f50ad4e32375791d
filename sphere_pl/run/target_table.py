"""How well each request's target value was targets: targets.csv in the run folder."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from typing_extensions import override

from sphere_pl.editing.key_plan import KeyPlan
from sphere_pl.editor import SequentialEditor
from sphere_pl.run.editor_callback import EditorCallback
from sphere_pl.storage.files import append_text, write_text

COLUMNS = ("edit", "case_id", "subject", "probability", "loss", "steps", "clamped", "converged",
           "shares_key_with", "overwrites", "asked_after")  # fmt: skip


class TargetTable(EditorCallback):
    """One row a request, added to the file after every batch; nothing for methods without target values.

    The first batch of a run, or of a resumed one, writes the file again: an interrupted run may have left rows behind
    its checkpoint.

    `probability` and `loss` are those at the last look, `clamped` says that the shift ended on its norm bound, and
    `converged` that the loss fell below `targets.stop_loss` before the steps ran out. `shares_key_with` names edits
    of the same batch that have nearly the same key and therefore the same target, `overwrites` those of earlier
    batches; `asked_after` is the context that an edit is asked after whose subject would stand at an attention sink.

    Args:
        run_dir: The run folder.
    """

    summary_name = "targets"

    def __init__(self, run_dir: str) -> None:
        self.path = Path(run_dir) / "targets.csv"
        self._rows = torch.zeros(0, 6, dtype=torch.float64)
        self._restored = self._begun = False

    @override
    def on_train_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Begin with an empty table unless the run is resumed."""
        if not self._restored:
            self._rows = self._rows[:0]
            if trainer.is_global_zero:
                self.path.unlink(missing_ok=True)
        self._restored = self._begun = False

    @override
    def on_train_batch_end(self, trainer: "L.Trainer", pl_module: "L.LightningModule", *_: Any) -> None:
        """Add the rows of the batch."""
        targets, first = self.editor.targets, self.editor.batch_start
        if targets is None:
            return
        places = torch.arange(first, first + len(targets.loss), device=targets.loss.device)
        converged = ~targets.unconverged(self.editor.target_settings)
        columns = [places, targets.probability, targets.loss, targets.steps, targets.clamped, converged]
        rows = torch.stack([each.double().cpu() for each in columns], dim=1)
        self._rows = torch.cat([self._rows, rows])
        if trainer.is_global_zero:
            self._write(rows, self.editor)
        self._begun = True

    @override
    def state_dict(self) -> dict[str, Tensor]:
        """The rows so far."""
        return {"rows": self._rows}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue below them."""
        self._rows, self._restored = state_dict["rows"], True

    @override
    def summary(self) -> dict[str, Any]:
        """How many requests did not converge, and how many shifts ended on their bound."""
        return {"unconverged": int((self._rows[:, 5] == 0).sum()), "clamped": int(self._rows[:, 4].sum())}

    def _write(self, new: Tensor, editor: SequentialEditor) -> None:
        if self._begun:
            append_text(self.path, _text(new, editor.plan))
        else:
            write_text(self.path, ",".join(COLUMNS) + "\n" + _text(self._rows, editor.plan))


def _text(rows: Tensor, plan: KeyPlan) -> str:
    """Rows `[n, 6]` as lines of CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for place, probability, loss, steps, clamped, converged in rows.tolist():
        request = plan.requests[int(place)]
        flags = ("yes" if clamped else "no", "yes" if converged else "no")
        numbers = (f"{probability:.6g}", f"{loss:.6g}", int(steps))
        others = (_edits(plan.sharing(int(place))), _edits(plan.overwritten(int(place))), request.form.before)
        writer.writerow((int(place) + 1, request.case_id, request.subject, *numbers, *flags, *others))
    return text.getvalue()


def _edits(places: Sequence[int]) -> str:
    """Numbers of some edits, as column `edit` has them."""
    return " ".join(str(place + 1) for place in places)
