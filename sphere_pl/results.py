"""What a run leaves: results.json, the edited matrices, report.html and a table on the screen."""

import json
import math
import platform
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
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

from sphere_callbacks import EnergyCorrelation, HypersphericalEnergy, SparseProjection, SpectrumRestraint
from sphere_pl.editor import SequentialEditor
from sphere_pl.files import write_atomically, write_text
from sphere_pl.methods.base import Method

METRICS = ("efficacy", "generalization", "specificity", "neighborhood_agreement")
_PACKAGES = ("sphere-pl", "sphere-callbacks", "torch", "lightning", "transformers", "torchmetrics")


class RunResults(L.Callback):
    """Write the results of a fit into its run folder and show them.

    Args:
        run_dir: The run folder.
    """

    def __init__(self, run_dir: str) -> None:
        self.run_dir = Path(run_dir)
        self._began = time.monotonic()
        self._batch_began = 0.0
        self._editing = 0.0
        self._edits = 0

    @override
    def setup(self, trainer: "L.Trainer", pl_module: "L.LightningModule", stage: str) -> None:
        """A new run in an old folder begins with an empty one; a resumed run goes on."""
        if stage == "fit" and trainer.is_global_zero and trainer.ckpt_path is None:
            for name in ("metrics.csv", "results.json", "edited.safetensors", "report.html"):
                (self.run_dir / name).unlink(missing_ok=True)

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
    def on_fit_end(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Write everything, once, on the first rank."""
        if not trainer.is_global_zero or not isinstance(pl_module, SequentialEditor):
            return
        results = self.collect(trainer, pl_module)
        write_text(self.run_dir / "results.json", json.dumps(results, indent=1))
        with _as_evaluated(trainer, pl_module):
            save_edited(pl_module, self.run_dir / "edited.safetensors")
        for logger in trainer.loggers:
            logger.save()
        from sphere_pl.report import write_report

        write_report(self.run_dir)
        show(results, self.run_dir, Console())

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
        results: dict[str, Any] = _finite(
            {
                "model": editor.name,
                "method": method_name(editor.method, trainer.callbacks),  # type: ignore[attr-defined]
                "edits": editor.edits_seen,
                "before": editor.before,
                "after": editor.after,
                "hyperspherical_energy": _energies(trainer),
                "spearman": _correlations(trainer),
                "seconds_per_edit": self._editing / max(1, self._edits),
                "seconds_total": time.monotonic() - self._began,
                "peak_memory_bytes": peak_memory(editor.device),
                "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
                "seed": int(torch.initial_seed()),
            }
        )
        return results


def method_name(method: Method, callbacks: Iterable[L.Callback]) -> str:
    """The method and what its updates pass through."""
    parts = [method.name]
    for callback in callbacks:
        if isinstance(callback, SparseProjection) and callback.strength > 0:
            parts.append("SPHERE")
        elif type(callback).__name__ in _TRANSFORMS:
            parts.append(_TRANSFORMS[type(callback).__name__])
    return " + ".join(parts)


def _as_evaluated(trainer: "L.Trainer", editor: SequentialEditor) -> ExitStack:
    """The weights that were scored: a `SpectrumRestraint` (PRUNE) swaps them around validation and saving."""
    stack = ExitStack()
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, SpectrumRestraint):
            stack.enter_context(callback.swapped(editor))
    return stack


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


def _energies(trainer: "L.Trainer") -> dict[str, dict[str, float]]:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, HypersphericalEnergy):
            return {
                name: {"before": before, "after": callback.latest[name]} for name, before in callback.initial.items()
            }
    return {}


def _correlations(trainer: "L.Trainer") -> dict[str, Any]:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EnergyCorrelation):
            return {metric: _plain(summary) for metric, summary in callback.summary().items()}
    return {}


def _plain(value: Any) -> Any:
    """Named tuples and tensors as JSON can hold them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    return float(value) if isinstance(value, Tensor) else value


def _finite(value: Any) -> Any:
    """NaN and infinity are no JSON: null in their place."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(results: dict[str, Any], run_dir: Path, console: Console) -> None:
    """Print the table of before and after."""
    table = Table(title=f"{results['method']} on {results['model']}, {results['edits']} edits", title_justify="left")
    for column in ("", "before", "after"):
        table.add_column(column, justify="left" if not column else "right")
    for metric in METRICS:
        table.add_row(metric.replace("_", " "), *(_score(results[when], metric) for when in ("before", "after")))
    table.add_row(
        "perplexity (held-out text)", *(_number(results[when].get("perplexity")) for when in ("before", "after"))
    )
    energies = results["hyperspherical_energy"].values()
    if energies and all(energy["after"] is not None for energy in energies):
        totals = [sum(energy[when] for energy in energies) for when in ("before", "after")]
        table.add_row(
            "hyperspherical energy", f"{totals[0]:.6g}", f"{totals[1]:.6g} ({totals[1] / totals[0] - 1:+.3%})"
        )
    table.add_section()
    table.add_row("seconds per edit", "", f"{results['seconds_per_edit']:.2f}")
    table.add_row("whole run", "", f"{results['seconds_total']:.0f} s")
    table.add_row("peak memory", "", f"{results['peak_memory_bytes'] / 2**30:.2f} GiB")
    console.print(table)
    console.print(f"Open {run_dir / 'report.html'}", highlight=False)


def _score(scores: dict[str, float | None], metric: str) -> str:
    value, error = scores.get(metric), scores.get(f"{metric}_standard_error")
    if value is None:
        return "-"
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
