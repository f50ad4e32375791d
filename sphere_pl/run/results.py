"""What a run leaves: results.json, the edited matrices, report.html and a table on the screen."""

import hashlib
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import override

from sphere_callbacks import EnergyCorrelation, HypersphericalEnergy, SparseProjection
from sphere_callbacks.energy import mean_change
from sphere_pl.editor import SequentialEditor
from sphere_pl.methods.base import Method
from sphere_pl.process.closing import after_results
from sphere_pl.process.console import as_shown, say
from sphere_pl.process.failures import doing
from sphere_pl.run.checkpoints import RunCheckpoints
from sphere_pl.run.editor_callback import EditorCallback
from sphere_pl.run.evaluated_weights import evaluated_weights
from sphere_pl.storage.files import write_atomically, write_text
from sphere_pl.text import numbers
from sphere_pl.trainers import Kind, callbacks_of

METRICS = ("efficacy", "generalization", "specificity", "neighborhood_agreement")
# Measured on a sample of the edits, before and after: see `EvaluationSettings`.
SAMPLED = {
    "probability/efficacy": "efficacy, by probability",
    "probability/generalization": "generalization, by probability",
    "probability/specificity": "specificity, by probability",
    "generation/efficacy": "efficacy, freely written",
    "generation/generalization": "generalization, freely written",
    "generation/specificity": "specificity, freely written",
    "generation/portability": "portability, freely written",
    "fluency": "fluency",
    "consistency": "consistency",
}
_PACKAGES = ("sphere-pl", "sphere-callbacks", "torch", "lightning", "transformers", "torchmetrics")


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
                self.editor.score_end()
        if trainer.is_global_zero:
            self.results = self.collect(trainer, self.editor)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Time spent so far, for a run that is resumed."""
        return {"editing": self._editing, "edits": self._edits, "total": time.monotonic() - self._began}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._editing, self._edits = state_dict["editing"], state_dict["edits"]
        self._began = time.monotonic() - state_dict["total"]

    def collect(self, trainer: "L.Trainer", editor: SequentialEditor) -> dict[str, Any]:
        """Gather the results; numbers that could not be measured are null."""
        results: dict[str, Any] = finite(
            {
                "model": editor.name,
                "method": method_name(editor.method, trainer.callbacks),  # type: ignore[attr-defined]
                "edits": editor.edits_seen,
                "data": getattr(getattr(trainer, "datamodule", None), "extent", None),
                "before": editor.before,
                "after": editor.after,
                "failed": editor.failed,
                "cases": editor.cases,
                "hyperspherical_energy": _first(trainer, HypersphericalEnergy, _energies),
                "spearman": _plain(_first(trainer, EnergyCorrelation, EnergyCorrelation.summary)),
                "abilities": {},
                "statistics": editor.diagnosis,
                "targets": {},
                **{
                    each.summary_name: each.summary()
                    for each in callbacks_of(trainer, EditorCallback)
                    if each.summary_name
                },
                "retried": editor.guard.retried,
                "skipped": editor.guard.skipped,
                "seconds_per_edit": self._editing / max(1, self._edits),
                "seconds_total": time.monotonic() - self._began,
                "seconds_saving": sum((each.seconds for each in callbacks_of(trainer, RunCheckpoints)), 0.0),
                "peak_memory_bytes": peak_memory(editor.device),
                "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
                "seed": int(torch.initial_seed()),
            }
        )
        return results


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
        """A new run in an old folder begins with an empty one; a resumed run, known from here on, goes on."""
        if trainer.is_global_zero and trainer.ckpt_path is None:
            for name in ("metrics.csv", "results.json", "edited.safetensors", "report.html"):
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


def method_name(method: Method, callbacks: Iterable[L.Callback]) -> str:
    """The method and what its updates pass through."""
    parts = [method.name]
    for callback in callbacks:
        if isinstance(callback, SparseProjection) and callback.strength > 0:
            parts.append("SPHERE")
        elif type(callback).__name__ in _TRANSFORMS:
            parts.append(_TRANSFORMS[type(callback).__name__])
    return " + ".join(parts)


_TRANSFORMS = {"RelativeMask": "RECT", "SpectrumRestraint": "PRUNE"}


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


def _first(trainer: "L.Trainer", kind: type[Kind], read: Callable[[Kind], dict[str, Any]]) -> dict[str, Any]:
    """What is read off the trainer's callback of one kind; nothing if there is none."""
    return next(map(read, callbacks_of(trainer, kind)), {})


def _energies(energy: HypersphericalEnergy) -> dict[str, dict[str, float]]:
    return {name: {"before": before, "after": energy.latest[name]} for name, before in energy.initial.items()}


def _plain(value: Any) -> Any:
    """Named tuples and tensors as JSON can hold them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    return float(value) if isinstance(value, Tensor) else value


def finite(value: Any) -> Any:
    """NaN and infinity are no JSON: null in their place."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(results: dict[str, Any], run_dir: Path, console: Console) -> None:
    """Print the table of before and after, and where the report is."""
    show_table(results, console)
    say(f"Open {run_dir / 'report.html'}", console)


def show_table(results: dict[str, Any], console: Console) -> None:
    """Print the table of before and after, under a line that names method, model and edits."""
    cut = results.get("data") or ""
    edits = cut if cut.startswith(f"{results['edits']:,} of ") else f"{results['edits']:,} edits"
    say(f"{results['method']} on {results['model']}, {edits}", console)
    table = Table()
    for column in ("", "before", "after"):
        table.add_column(column, justify="left" if not column else "right")
    for metric in METRICS:
        table.add_row(
            metric.replace("_", " "),
            *(as_shown(_score(results[when], metric), console) for when in ("before", "after")),
        )
    for name, label in SAMPLED.items():
        if any(name in results[when] for when in ("before", "after")):
            table.add_row(label, *(as_shown(_score(results[when], name), console) for when in ("before", "after")))
    table.add_row(
        "perplexity (held-out text)", *(_number(results[when].get("perplexity")) for when in ("before", "after"))
    )
    for task, found in results.get("abilities", {}).items():
        row = {**found, "after_standard_error": found["standard_error"]}
        name = f"{task} ({found['metric'].replace('_', ' ')})"
        table.add_row(name, *(as_shown(_score(row, when), console) for when in ("before", "after")))
    energies = results["hyperspherical_energy"].values()
    if energies and all(energy["after"] is not None for energy in energies):
        totals = [sum(energy[when] for energy in energies) for when in ("before", "after")]
        table.add_row(
            "energy (mean change)",
            numbers.total(totals[0]),
            f"{numbers.total(totals[1])} ({numbers.change(energy_change(results['hyperspherical_energy']))})",
        )
    table.add_section()
    table.add_row("seconds per edit", "", numbers.plain(results["seconds_per_edit"]))
    table.add_row("whole run", "", numbers.duration(results["seconds_total"]))
    table.add_row("peak memory", "", numbers.memory(results["peak_memory_bytes"]))
    console.print(table)


def _score(scores: dict[str, float | None], metric: str) -> str:
    value, error = scores.get(metric), scores.get(f"{metric}_standard_error")
    if value is None:
        return numbers.MISSING
    return numbers.score(value, math.nan if error is None else error)


def _number(value: float | None) -> str:
    return numbers.MISSING if value is None else numbers.plain(value)


def energy_change(energies: dict[str, dict[str, float]]) -> float:
    """The matrices' mean change, as the progress and the report have it."""
    return mean_change(
        {name: each["after"] for name, each in energies.items()},
        {name: each["before"] for name, each in energies.items()},
    )
