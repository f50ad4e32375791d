"""The edit log of a run: every batch's change of every matrix, with its requests."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from typing_extensions import override

from sphere_callbacks import SpectrumRestraint
from sphere_pl.editor import SequentialEditor
from sphere_pl.errors import UserError
from sphere_pl.evaluation.fact_list import to_header
from sphere_pl.history.entries import Entry, Header, Matrix, same_state, stored_request, sums_of
from sphere_pl.history.log import (
    TENSOR_FOLDER,
    EditHistory,
    Kept,
    adopt,
    append_entry,
    now,
    pack,
    read_log,
    remove_log,
    truncate,
    write_log,
    write_tensors,
)
from sphere_pl.history.low_rank import ROUNDING, Change, compress, rank_of
from sphere_pl.methods.base import Method
from sphere_pl.model.files import lasting_name
from sphere_pl.model.fingerprint import fingerprint
from sphere_pl.process.failures import doing
from sphere_pl.run.editor_callback import EditorCallback
from sphere_pl.run.summaries import method_name
from sphere_pl.text.numbers import counted
from sphere_pl.trainers import callbacks_of

log = logging.getLogger(__name__)


class EditLog(EditorCallback):
    """Append what every batch has really changed to the log in the run folder.

    The change is the difference of the weights after the batch and before it, so it holds whatever callbacks, retries
    and rollbacks did in between. It must therefore stand after every callback that changes weights. A change that
    other code makes between batches, such as a guard that puts weights back after a validation, becomes an entry of its
    own. The weights before the batch are kept in CPU memory.

    Args:
        run_dir: The run folder.
        keep: `all` logs the keys and residuals that the method solved beside the changes, which takes edits out of a
            run afterwards; `changes` leaves them out; `none` logs nothing.
        max_gigabytes: Size of the tensor files beyond which the log continues without them, so that a method whose
            changes have full rank does not fill the disk.
    """

    def __init__(self, run_dir: str, keep: Kept = "all", max_gigabytes: float = 20.0) -> None:
        self.run_dir = Path(run_dir)
        self.keep: Kept = keep
        self.max_bytes = max_gigabytes * 1e9
        self._history: EditHistory | None = None
        self._header: Header | None = None
        self._resuming = False
        self._restored: int | None = None
        self._before: dict[str, Tensor] = {}
        self._bytes = 0

    @override
    def on_fit_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Look at the unedited model; a new run in an old folder begins with an empty log."""
        self._history = self._header = None
        # Known from here on: Lightning does not tell `setup` that a run is resumed.
        self._resuming = trainer.ckpt_path is not None
        if not trainer.is_global_zero:
            return
        if not self._resuming:
            remove_log(self.run_dir)
        if self.keep == "none":
            return
        self._header = _describe(trainer, self.editor, solvable=self.keep == "all")
        self._before = {name: weight.to("cpu", copy=True) for name, weight in self.editor.matrices.items()}

    @override
    def on_train_batch_start(
        self, trainer: "L.Trainer", pl_module: "L.LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """Before the first batch, begin the log or resume it."""
        if self._header is None or self._history is not None:
            return
        earlier = self.editor.earlier
        if self._resuming:
            self._take_up(self.editor, self._header)
        elif earlier is not None and earlier.history is not None:
            self._history = adopt(self.run_dir, self._header, earlier.history)
            self._bytes = _size(self.run_dir)
            self._remember(self.editor)
        else:
            self._history = write_log(self.run_dir, self._header)

    @override
    def on_train_batch_end(
        self, trainer: "L.Trainer", pl_module: "L.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the batch."""
        if self._history is not None and batch.requests:
            self._append(self.editor, batch.edits, [stored_request(request) for request in batch.requests])

    @override
    def on_validation_end(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Log that a callback has moved the weights after a validation."""
        if self._history is not None:
            self._settle(self.editor)

    @override
    def state_dict(self) -> dict[str, Any]:
        """How many entries belong to this checkpoint."""
        return {"entries": len(self._history.entries)} if self._history is not None else {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Leave out later entries when the run is resumed."""
        self._restored = state_dict.get("entries")

    def _take_up(self, editor: SequentialEditor, header: Header) -> None:
        """Continue after the checkpoint's last entry; what came after it will be done again."""
        try:
            history = read_log(self.run_dir)
        except UserError as error:
            log.warning("The edit log begins again at this checkpoint: %s", error)
            history = write_log(self.run_dir, header)
        if history.header.fingerprint != header.fingerprint:
            raise UserError(
                f"{self.run_dir} holds the edit log of another unedited model ({history.header.model}) than the one "
                f"that is edited now ({header.model}). Resume with the run's own model, or choose another --run_dir."
            )
        kept = sum(entry.edits <= editor.edits_seen for entry in history.entries)
        kept = kept if self._restored is None else min(self._restored, len(history.entries))
        self._history, self._restored = truncate(history, kept), None
        self._bytes = _size(self.run_dir)
        sums = sums_of(editor.matrices)
        if not same_state(self._history.entries[-1].sums if kept else sums_of(self._before), sums):
            self._store(Entry(kept + 1, 0, editor.edits_seen, sums=sums), self._differences(editor, 0))
        self._remember(editor)

    @doing("keeping the batch in the edit log")
    def _append(self, editor: SequentialEditor, edits: int, requests: list[dict[str, Any]]) -> None:
        assert self._history is not None  # noqa: S101 (checked by the hooks)
        number = len(self._history.entries) + 1
        entry = Entry(number, number - 1, edits, requests, sums=sums_of(editor.matrices))
        self._store(entry, self._differences(editor, len(requests)), self._systems(editor))
        self._remember(editor)

    def _remember(self, editor: SequentialEditor) -> None:
        """Keep the weights that the next change starts from; in place, since fresh pages cost more than the copy."""
        for name, weight in editor.matrices.items():
            self._before[name].copy_(weight)

    def _settle(self, editor: SequentialEditor) -> None:
        """Log a change that no batch made; going back to an earlier state needs no tensors."""
        weights = editor.matrices
        if self._history is None or all(torch.equal(w.cpu(), self._before[name]) for name, w in weights.items()):
            return
        sums, entries = sums_of(weights), self._history.entries
        number, edits = len(entries) + 1, self._history.edits
        earlier = next((entry.number for entry in reversed(entries) if entry.is_state(sums)), None)
        if earlier is not None:
            self._store(Entry(number, earlier, edits, sums=sums), {})
        else:
            changes = self._differences(editor, len(entries[-1].requests) if entries else 1)
            self._store(Entry(number, number - 1, edits, sums=sums), changes)
        self._remember(editor)

    def _differences(self, editor: SequentialEditor, expected_rank: int) -> dict[str, Change | None]:
        """What has changed since the entry before, as factors where they are smaller."""
        changes: dict[str, Change | None] = {}
        for name, weight in editor.matrices.items():
            before = self._before[name].to(weight.device)
            noise = ROUNDING * float(torch.linalg.matrix_norm(weight))
            same = torch.equal(weight, before)
            changes[name] = None if same else compress(weight - before, expected_rank, noise)
        return changes

    def _systems(self, editor: SequentialEditor) -> dict[str, dict[str, Tensor]]:
        if self.keep != "all":
            return {}
        systems: dict[str, dict[str, Tensor]] = {}
        for site, solved in zip(editor.sites, editor.solved, strict=False):
            systems[site.name] = {"keys": solved.keys, "residuals": solved.residuals}
            if solved.remembered is not None:
                systems[site.name]["remembered"] = solved.remembered
        return systems

    def _store(
        self,
        entry: Entry,
        changes: dict[str, Change | None],
        systems: dict[str, dict[str, Tensor]] | None = None,
    ) -> None:
        """Write the tensors, then the line that vouches for them."""
        assert self._history is not None  # noqa: S101 (checked by the hooks)
        tensors = pack(changes, systems)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        values: dict[str, Any] = {"ranks": {name: rank_of(c) for name, c in changes.items() if c is not None}}
        if tensors and self._bytes + size > self.max_bytes:
            self._warn_full()
            values["complete"] = False
        elif tensors:
            values["file"], values["sha256"] = write_tensors(self.run_dir, entry.number, tensors)
            self._bytes += (self.run_dir / TENSOR_FOLDER / values["file"]).stat().st_size
        entry = Entry(**{**vars(entry), **values, "time": now()})
        append_entry(self.run_dir, entry)
        self._history.entries.append(entry)

    def _warn_full(self) -> None:
        assert self._history is not None  # noqa: S101 (checked by the hooks)
        if all(entry.complete for entry in self._history.entries):
            log.warning(
                "After %s the edit log has reached --edit_log_gigabytes=%g. From here on it notes the requests "
                "only: weights can be rebuilt up to there. Raise the limit, or set --edit_log changes or none.",
                counted(self._history.edits, "edit"),
                self.max_bytes / 1e9,
            )


def _keeps_all(method: Method) -> bool:
    """Whether the log holds what an edit was solved from: keys and residuals, or nothing but the edit itself."""
    return method.needs_targets or method.retrieval is not None


def _size(run_dir: Path) -> int:
    return sum(path.stat().st_size for path in (run_dir / TENSOR_FOLDER).glob("batch-*.safetensors"))


def _describe(trainer: "L.Trainer", editor: SequentialEditor, *, solvable: bool) -> Header:
    """The log's first line, from the unedited model."""
    lm, earlier = editor.language_model, editor.earlier
    before = None if earlier is None or earlier.history is None else earlier.history.header
    restraints = callbacks_of(trainer, SpectrumRestraint)
    return Header(
        model=lasting_name(editor.name),
        revision=editor.source.revision,
        dtype=str(lm.dtype).removeprefix("torch."),
        fingerprint=fingerprint(lm),
        layers=list(editor.layers),
        matrices=[
            Matrix(site.name, (int(weight.shape[0]), int(weight.shape[1])), site.fan_in_fan_out)
            for site, weight in zip(editor.sites, editor.weights, strict=True)
        ],
        method=method_name(editor.method, trainer.callbacks),  # type: ignore[attr-defined]
        solvable=solvable and _keeps_all(editor.method) and (before is None or before.solvable),
        retrieval=to_header(editor.method.retrieval),
        architecture=editor.source.architecture,
        restraint={
            "modules": restraints[0].modules,
            "cumulative_ratio": restraints[0].project_cumulative_ratio,
            "strength": restraints[0].project_strength,
        }
        if restraints
        else None,
        ancestors=[] if earlier is None else earlier.ancestors,
        removed=[] if before is None else before.removed,
    )
