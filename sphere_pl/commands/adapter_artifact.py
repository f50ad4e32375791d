"""The edits of a run as a LoRA adapter in its wandb run: `fit --wandb.adapter true`."""

import tempfile
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from typing_extensions import override

from sphere_pl.commands.export_folders import adapter_of, end_of, write_adapter_files
from sphere_pl.history.adapter import Adapter
from sphere_pl.history.saved import SavedRun
from sphere_pl.process.closing import after_results
from sphere_pl.run.editor_callback import EditorCallback


class AdapterArtifact(EditorCallback):
    """Log the adapter that `export --adapter` would write as an artifact of the wandb run, when the run has ended.

    Edits without low rank have no such adapter: that is one warning, and the run stands. It must come after what writes
    the results. The unedited matrices are kept in main memory meanwhile.

    Args:
        run_dir: The run folder.
    """

    def __init__(self, run_dir: str) -> None:
        self.run_dir = Path(run_dir)
        self._unedited: dict[str, Tensor] = {}

    @override
    def on_fit_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Copy the unedited matrices; a checkpoint is loaded into them later."""
        if _wandb_runs(trainer):
            self._unedited = {site.name: site.read().to("cpu", copy=True) for site in self.editor.sites}

    @override
    def on_fit_end(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Log it."""
        for logger in _wandb_runs(trainer):
            with after_results("sending the adapter to wandb"), tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / "adapter"
                send_adapter(logger, folder, self._write(folder))

    def _write(self, folder: Path) -> Adapter:
        run = SavedRun.open(self.run_dir)
        chosen = end_of(run, run.final())
        adapter = adapter_of(self._unedited, chosen)
        write_adapter_files(folder, run, self.editor.language_model.tokenizer, self._unedited, chosen, adapter)
        return adapter


def send_adapter(logger: WandbLogger, folder: Path, adapter: Adapter) -> None:
    """Log a folder as an artifact of type `model`, named after the run."""
    import wandb

    about: dict[str, Any] = {"rank": adapter.rank, "vllm_max_lora_rank": adapter.vllm_rank}
    artifact = wandb.Artifact(f"adapter-{logger.experiment.id}", type="model", metadata=about)
    artifact.add_dir(str(folder))
    logger.experiment.log_artifact(artifact)


def _wandb_runs(trainer: "L.Trainer") -> list[WandbLogger]:
    return [each for each in trainer.loggers if trainer.is_global_zero and isinstance(each, WandbLogger)]
