"""`python -m sphere_pl fit`: Lightning's command line, with group files found by name and a folder for every run."""

import logging
import re
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from omegaconf.errors import OmegaConfBaseException

from sphere_callbacks import EnergyCorrelation, HypersphericalEnergy, SparseProjection
from sphere_pl.abilities.callback import GeneralAbilities
from sphere_pl.configs import config_folder, resolve_group_files
from sphere_pl.data.datamodule import EditDataModule
from sphere_pl.devices import accelerator_is_idle, default_device
from sphere_pl.distributed import follow_parent, is_first_process
from sphere_pl.editor import SequentialEditor
from sphere_pl.errors import UserError
from sphere_pl.methods.base import LikelihoodMethod
from sphere_pl.monitors.drift import Drift
from sphere_pl.monitors.edit_log import EditLog
from sphere_pl.monitors.live import LiveReport
from sphere_pl.monitors.loggers import WandbSettings, run_loggers
from sphere_pl.monitors.preflight import MemoryPreflight
from sphere_pl.monitors.results import RunResults, method_name
from sphere_pl.monitors.shortage import shortage
from sphere_pl.monitors.target_table import TargetTable
from sphere_pl.monitors.tracking import WandbPanels
from sphere_pl.progress import EditProgress
from sphere_pl.refusals import check_strategy
from sphere_pl.resilience.checkpoints import RunCheckpoints
from sphere_pl.resilience.failures import doing, explained
from sphere_pl.resilience.fingerprints import settings_that_count
from sphere_pl.resilience.resuming import RunConfig, how_to_resume, refuse_unfinished, resolve_resume
from sphere_pl.resilience.run_lock import RunLock
from sphere_pl.runs.log import Kept

log = logging.getLogger(__name__)


class EditingCLI(LightningCLI):
    """Lightning's command line for `SequentialEditor` and `EditDataModule`."""

    def fit(self, model: LightningModule, **kwargs: Any) -> None:
        """Run the fit, and then give its folder back."""
        with self._held:
            self._fit(model, **kwargs)

    def _fit(self, model: LightningModule, **kwargs: Any) -> None:
        """Run the fit; one that is interrupted, or that memory or disk end, says how to go on."""
        check_strategy(self.model.device_map, self.trainer)  # here, before there are further processes, it is said once
        if self.trainer.local_rank:
            follow_parent()
        try:
            with explained(self._how_to_go_on, lambda: shortage(self.model, self.datamodule)), doing("editing"):
                self.trainer.fit(model, **kwargs)
        except RuntimeError as error:
            # The processes beside a lost one see their next exchange fail, with an error of the network library.
            lost = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
            if self.trainer.world_size == 1 or not lost:
                raise
            raise UserError(
                f"A process of the run was lost (rank {self.trainer.global_rank} saw: {str(error).splitlines()[0]}). "
                f"{self._how_to_go_on()}"
            ) from error

    def _how_to_go_on(self) -> str:
        folder = self._get(self.config_init, "checkpoints").folder(self.trainer)
        return how_to_resume(Path(self._get(self.config_init, "run_dir")), folder, self.datamodule.batch_size)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Editing is a fit; what follows on a saved run are commands of their own."""
        return {"fit": LightningCLI.subcommands()["fit"]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder and the callbacks that every run has."""
        parser.add_argument("--run_dir", type=str | None, help="Folder of the run; runs/<time>-<name> if left out.")
        parser.add_argument("--wandb", type=WandbSettings, default=WandbSettings(), help="The run's place in wandb.")
        parser.add_argument(
            "--edit_log",
            type=Kept,
            default="all",
            help="What edits.jsonl and edits/ keep of every batch: all, changes (no keys and residuals) or none.",
        )
        parser.add_argument("--edit_log_gigabytes", type=float, default=20.0, help="Size limit of edits/.")
        parser.add_argument("--quiet", type=bool, default=False, help="Show no progress.")
        parser.add_lightning_class_args(SparseProjection, "projection")
        parser.add_lightning_class_args(HypersphericalEnergy, "energy")
        parser.add_lightning_class_args(EnergyCorrelation, "correlation")
        parser.add_lightning_class_args(Drift, "drift")
        # No callback key of its own: it goes behind RunResults, so that its time is no batch's time.
        parser.add_class_arguments(GeneralAbilities, "eval")
        parser.add_lightning_class_args(RunCheckpoints, "checkpoints")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and keep the arguments: Lightning starts a process for each further device with `sys.argv`."""
        try:
            super().parse_arguments(parser, args)
        except OmegaConfBaseException as error:
            raise UserError(
                f"A ${{...}} of the configuration could not be resolved: {' '.join(str(error).split())}. Name a value "
                "that is there, such as ${data.batch_size}."
            ) from error
        sys.argv[1:] = args

    def _parse_ckpt_path(self) -> None:
        """Take nothing from the checkpoint: a run's settings are in its config.yaml.

        Lightning would read hyperparameters from it with `torch.load`, which before 2.13 knows no safetensors.
        """

    def before_instantiate_classes(self) -> None:
        """Name the run's folder, for all processes alike."""
        config = self.config[self.subcommand]
        config.trainer.callbacks = _once(config.trainer.callbacks)
        if config.run_dir is None:
            config.run_dir = str(Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(config.model.name).name}")
            sys.argv.append(f"--run_dir={config.run_dir}")
        if config.eval.keep is None:
            config.eval.keep = str(Path(config.run_dir) / "abilities.json")

    def instantiate_classes(self) -> None:
        """Build everything; what a constructor refuses is the user's mistake."""
        try:
            with ExitStack() as held:
                self._held = held
                super().instantiate_classes()
                self._held = held.pop_all()
        except (ValueError, TypeError) as error:
            raise UserError(str(error)) from error
        except RuntimeError as error:
            twice = re.match(r"Found more than one stateful callback of type `\w+`", str(error))
            if twice is None:
                raise
            raise UserError(
                f"{twice.group()}: leave it out of --trainer.callbacks. Those that every run has are set by "
                "--projection.*, --energy.*, --correlation.*, --drift.* and --checkpoints.*."
            ) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with the run's own callbacks behind the configured ones, and its loggers."""
        run_dir = self._get(self.config_init, "run_dir")
        abilities = self._get(self.config_init, "eval")
        # Results behind the configured callbacks, so that a batch's time includes what they do with it.
        self.trainer_defaults["callbacks"] = [
            EditProgress(quiet=self._get(self.config_init, "quiet")),
            MemoryPreflight(),
            LiveReport(run_dir),
            EditLog(
                run_dir, self._get(self.config_init, "edit_log"), self._get(self.config_init, "edit_log_gigabytes")
            ),
            TargetTable(run_dir),
            RunResults(run_dir),
            abilities,
            WandbPanels(run_dir),
        ]
        # A mistake in the data ends the run before anything is written.
        with doing("reading the data"):
            self.datamodule.setup("fit")
            abilities.load()
        if isinstance(self.model.method, LikelihoodMethod):
            _refuse_idle(self.model.method.name, sys.argv[1:])
        resumed = self._get(self.config_init, "ckpt_path") is not None
        if is_first_process():
            self._held.enter_context(RunLock(run_dir))
        if not resumed:
            refuse_unfinished(Path(run_dir))
        self._dump_config()
        self._get(self.config_init, "checkpoints").settings = settings_that_count(self.config_dump)
        if self._get(self.config_init, "trainer").get("logger") in (None, True):
            settings = self._get(self.config_init, "wandb")
            kwargs["logger"] = run_loggers(run_dir, settings, self.config_dump, self._labels(), resumed)
        if self._get(self.config_init, "trainer").get("accelerator") == "auto" and accelerator_is_idle():
            log.warning("The accelerator of this machine has no double precision, which edits need: the CPU is used.")
            kwargs["accelerator"] = default_device().type
            warnings.filterwarnings("ignore", "GPU available but not used")
        kwargs["default_root_dir"] = run_dir
        return super().instantiate_trainer(**kwargs)

    def _labels(self) -> list[str]:
        """Method, model and data: what runs are told apart by."""
        configured = self._get(self.config_init, "trainer").get("callbacks") or []
        callbacks = [*(configured if isinstance(configured, list) else [configured])]
        method = method_name(self.model.method, [*callbacks, self._get(self.config_init, "projection")])
        return [method, Path(self.model.name).name, self.datamodule.name]


def _once(callbacks: Any) -> Any:
    """Callbacks without those that stand there twice alike.

    A run that goes on takes its own configuration; the `callbacks+:` of the same command given again would add its own.
    """
    if not isinstance(callbacks, list):
        return callbacks
    return [each for index, each in enumerate(callbacks) if each not in callbacks[:index]]


def _refuse_idle(method: str, args: Sequence[str]) -> None:
    """Refuse options of the target optimisation, given by hand to a method that has no targets.

    Those that come with the default configuration are left alone.
    """
    used = ("--model.targets.anchor", "--model.targets.max_tokens")  # refused by the editor; used by every method
    idle = [each for each in args if each.startswith("--model.targets.") and each.split("=")[0] not in used]
    if idle:
        raise UserError(
            f"{method} optimises no target values: `{' '.join(idle)}` would change nothing. Leave it out, or choose a "
            "method that solves for target values, such as --config method/alphaedit."
        )


def run(args: Sequence[str]) -> EditingCLI:
    """Parse a command line and run it.

    Raises:
        UserError: For a user's mistake.
    """
    settings = {"default_config_files": [str(config_folder() / "default.yaml")]}
    return EditingCLI(
        SequentialEditor,
        EditDataModule,
        # omegaconf+ resolves ${...} after files, defaults and command line are merged.
        parser_kwargs={
            "parser_mode": "omegaconf+",
            **{name: {"parser_mode": "omegaconf+", **settings} for name in EditingCLI.subcommands()},
        },
        save_config_callback=RunConfig,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        args=resolve_resume(resolve_group_files(args)),
    )


def main(args: Sequence[str]) -> None:
    """Run `python -m sphere_pl fit`."""
    run(["fit", *args])
