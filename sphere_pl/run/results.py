"""What a run leaves: results.json, the edited matrices, report.html and a table on the screen."""

import hashlib
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import override

from sphere_callbacks.energy import mean_change
from sphere_pl.editor import SequentialEditor
from sphere_pl.evaluation.metrics.table import FIRST_RANK, titles
from sphere_pl.evaluation.scored import Scored, from_plain, shown, to_plain
from sphere_pl.history.continuation import KEPT
from sphere_pl.history.log import LOG_FILE, log_digest
from sphere_pl.process.closing import after_results
from sphere_pl.process.console import as_shown, say
from sphere_pl.process.failures import doing
from sphere_pl.progress import track
from sphere_pl.report.verdict import closing_lines
from sphere_pl.run.checkpoints import RunCheckpoints
from sphere_pl.run.editor_callback import EditorCallback
from sphere_pl.run.evaluated_weights import evaluated_weights
from sphere_pl.run.outcomes import moved, rows_of, say_outcomes
from sphere_pl.run.summaries import check_summaries, method_name, plain, summaries_of, transforms_of
from sphere_pl.storage.files import write_atomically, write_text
from sphere_pl.text import numbers
from sphere_pl.text.version import __version__, version_of
from sphere_pl.trainers import callbacks_of

# Entries of results.json that no callback's summary may have the name of.
OWN = (
    "model", "method", "method_name", "transforms", "edits", "data", "before", "after", "scored", "held", "at_sink",
    "edited_as",
    "failed", "failed_edits", "causes", "advice", "facts", "edited_again", "weights_moved", "made_neighbors", "cases",
    "statistics", "retried", "skipped", "seconds_per_edit", "seconds_total", "seconds_saving", "peak_memory_bytes",
    "versions", "seed", "continues", "edited_sha256", "edit_log_sha256",
)  # fmt: skip
# Summaries that have their entry in every run, whether or not there is a callback to fill it.
_EXPECTED = ("hyperspherical_energy", "spearman", "abilities", "targets")
_PACKAGES = ("sphere-callbacks", "torch", "lightning", "transformers", "torchmetrics")


class Results(EditorCallback):
    """Collect the results of a fit; `RunResults` writes them as well.

    Attributes:
        results: What results.json says; empty before the end.
        written: Whether all that counts is done: from here on nothing fails the run.
    """

    def __init__(self) -> None:
        self.results: dict[str, Any] = {}
        self.written = False
        self._began = time.monotonic()
        self._batch_began = 0.0
        self._editing = 0.0
        self._edits = 0
        self._start: dict[str, Tensor] = {}

    @override
    def setup(self, trainer: "L.Trainer", pl_module: "L.LightningModule", stage: str) -> None:
        """Refuse callbacks whose summaries could not be written."""
        super().setup(trainer, pl_module, stage)
        check_summaries(trainer.callbacks, OWN)  # type: ignore[attr-defined]

    @override
    def on_fit_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Keep some rows of the unedited matrices; a checkpoint is loaded into them later."""
        self._start = rows_of(self.editor)

    @override
    def on_train_batch_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule", *_: Any) -> None:
        """Start the clock of one batch."""
        self._batch_began = time.monotonic()

    @override
    def on_train_batch_end(
        self, trainer: "L.Trainer", pl_module: "L.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock of one batch; validation is not counted."""
        seconds = time.monotonic() - self._batch_began
        self._editing += seconds
        self._edits += len(batch.requests)
        pl_module.log("time/seconds", seconds, on_step=True, on_epoch=False, batch_size=1)

    @override
    @doing("collecting the results")
    def on_fit_end(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Score the end if the last validation has not, and collect everything."""
        if trainer.enable_validation and not self.editor.evaluator.last:
            with evaluated_weights(trainer, self.editor):
                lm, edits, start = self.editor.language_model, self.editor.edits_seen, self.editor.batch_start
                self.editor.scores.score_end(lm, edits, start, track(trainer))
        if trainer.is_global_zero:
            self.results = self.collect(trainer, self.editor)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Time spent so far, for a run that is resumed."""
        return {"editing": self._editing, "edits": self._edits, "total": time.monotonic() - self._began}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue to count."""
        self._editing, self._edits = state_dict["editing"], state_dict["edits"]
        self._began = time.monotonic() - state_dict["total"]

    def collect(self, trainer: "L.Trainer", editor: SequentialEditor) -> dict[str, Any]:
        """Gather the results; numbers that could not be measured are null."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        said = say_outcomes(trainer, editor, moved(self._start, rows_of(editor)))
        results: dict[str, Any] = plain(
            {
                "model": editor.name,
                "method": method_name(editor.method, callbacks),
                "method_name": editor.method.name,
                "transforms": transforms_of(callbacks),
                "edits": editor.edits_seen,
                "data": getattr(getattr(trainer, "datamodule", None), "extent", None),
                "before": to_plain(editor.scores.before),
                "after": to_plain(editor.scores.after),
                **said,
                "cases": editor.scores.cases,
                **{name: {} for name in _EXPECTED},
                **summaries_of(callbacks),
                "statistics": editor.diagnosis,
                "retried": editor.guard.retried,
                "skipped": editor.guard.skipped,
                "seconds_per_edit": self._editing / max(1, self._edits),
                "seconds_total": time.monotonic() - self._began,
                "seconds_saving": sum((each.seconds for each in callbacks_of(trainer, RunCheckpoints)), 0.0),
                "peak_memory_bytes": peak_memory(editor.device),
                "versions": {
                    "python": platform.python_version(),
                    "sphere-pl": __version__,
                    **{name: version_of(name) for name in _PACKAGES},
                },
                "seed": int(torch.initial_seed()),
                "continues": _continued(editor),
            }
        )
        return results


def _continued(editor: SequentialEditor) -> dict[str, Any] | None:
    """The run that this one continues, and how many edits it had made."""
    earlier = editor.earlier
    return None if earlier is None else {"run_dir": earlier.name, "edits": len(earlier.requests)}


class RunResults(Results):
    """Write the results of a fit into its run folder and show them.

    Args:
        run_dir: The run folder.
        shown: Whether the table is printed at the end.
    """

    def __init__(self, run_dir: str, shown: bool = True) -> None:
        super().__init__()
        self.run_dir, self.shown = Path(run_dir), shown

    @override
    def on_fit_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """A new run in an old folder begins with an empty one; a resumed run, known from here on, keeps its files."""
        super().on_fit_start(trainer, pl_module)
        if trainer.is_global_zero and trainer.ckpt_path is None:
            for name in ("metrics.csv", "results.json", "edited.safetensors", "report.html", KEPT):
                (self.run_dir / name).unlink(missing_ok=True)

    @override
    @doing("writing the results")
    def on_fit_end(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Write everything, once, on the first rank."""
        super().on_fit_end(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        edited = self.run_dir / "edited.safetensors"
        with evaluated_weights(trainer, self.editor):
            save_edited(self.editor, edited)
        self.results["edited_sha256"] = hashlib.sha256(edited.read_bytes()).hexdigest()
        logged = (self.run_dir / LOG_FILE).is_file()
        self.results["edit_log_sha256"] = log_digest(self.run_dir) if logged else None
        write_text(self.run_dir / "results.json", json.dumps(self.results, indent=1))
        self.written = True
        for logger in trainer.loggers:
            with after_results(type(logger).__name__):
                logger.save()
        with after_results("report.html"):
            from sphere_pl.report import write_report

            write_report(self.run_dir)
        if self.shown:
            with after_results("the table"):
                show(self.results, self.run_dir, Console())


def peak_memory(device: torch.device) -> int:
    """Peak memory of the device, or of the process on a CPU, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def save_edited(editor: SequentialEditor, path: Path) -> None:
    """Write the full edited matrices in the model's layout, under their Hugging Face names."""
    tensors: dict[str, Tensor] = {}
    for site, weight in zip(editor.sites, editor.weights, strict=True):
        stored = weight.detach().T if site.fan_in_fan_out else weight.detach()
        tensors[site.name] = stored.cpu().contiguous()
    about = {"model": editor.name, "method": editor.method.name, "edits": editor.edits_seen}
    # One entry: safetensors writes several in an order that changes from process to process.
    metadata = {"sphere_pl": json.dumps(about, sort_keys=True)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def show(results: dict[str, Any], run_dir: Path, console: Console) -> None:
    """Print the table of before and after, and where the report is."""
    show_table(results, console)
    for line in closing_lines(results):
        say(as_shown(line, console), console)
    say(f"Open {run_dir / 'report.html'}", console)


def show_table(results: dict[str, Any], console: Console) -> None:
    """Print the table of before and after, under a line that names method, model and edits."""
    cut = results.get("data") or ""
    edits = cut if cut.startswith(f"{results['edits']:,} of ") else numbers.counted(results["edits"], "edit")
    say(f"{results['method']} on {results['model']}, {edits}", console)
    table = Table()
    for column in ("", "before", "after"):
        table.add_column(column, justify="left" if not column else "right")
    for row in [*_score_rows(results), *_ability_rows(results), *_energy_rows(results["hyperspherical_energy"] or {})]:
        table.add_row(*(as_shown(cell, console) for cell in row))
    table.add_section()
    table.add_row("seconds per edit", "", numbers.plain(results["seconds_per_edit"]))
    table.add_row("whole run", "", numbers.duration(results["seconds_total"]))
    table.add_row("peak memory", "", numbers.memory(results["peak_memory_bytes"]))
    console.print(table)


def _score_rows(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """A row for every metric of first rank, measured or not, and for every other score that was measured."""
    before, after = (from_plain(results[when]) for when in ("before", "after"))
    unknown = Scored(float("nan"))
    return [
        (title, shown(name, before.get(name, unknown)), shown(name, after.get(name, unknown)))
        for name, title in titles().items()
        if name in FIRST_RANK or name in before or name in after
    ]


def _ability_rows(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for task, found in (results.get("abilities") or {}).items():
        scores = from_plain({**found, "after_standard_error": found["standard_error"]})
        title = f"{task} ({found['metric'].replace('_', ' ')})"
        before, after = (shown(f"abilities/{task}", scores[when]) for when in ("before", "after"))
        rows.append((title, before, after))
    return rows


def _energy_rows(energies: dict[str, dict[str, float]]) -> list[tuple[str, str, str]]:
    if not energies or any(energy["after"] is None for energy in energies.values()):
        return []
    before, after = (sum(energy[when] for energy in energies.values()) for when in ("before", "after"))
    change = numbers.change(energy_change(energies))
    return [("energy (mean change)", numbers.total(before), f"{numbers.total(after)} ({change})")]


def energy_change(energies: dict[str, dict[str, float]]) -> float:
    """The matrices' mean change, as the progress and the report have it."""
    return mean_change(
        {name: each["after"] for name, each in energies.items()},
        {name: each["before"] for name, each in energies.items()},
    )
