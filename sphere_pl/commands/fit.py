"""`python -m sphere_pl fit`: Lightning's command line, with group files found by name and a folder for every run."""

import logging
import re
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

import torch
import yaml
from jsonargparse import set_loader
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from omegaconf.errors import OmegaConfBaseException

from sphere_pl.commands.adapter_artifact import AdapterArtifact
from sphere_pl.commands.configs import resolve_group_files
from sphere_pl.commands.continuing import check_run_dir, from_folder, resolve_from
from sphere_pl.commands.fit_arguments import FitParser, add_fit_arguments, check_used, without_repeats
from sphere_pl.commands.parsers import AllHelp, users_mistakes
from sphere_pl.commands.resuming import RunConfig, how_to_resume, resolve_resume
from sphere_pl.commands.short_help import argument
from sphere_pl.data.datamodule import EditDataModule
from sphere_pl.editing.checks import check_launch, check_retry, check_strategy, check_subjects
from sphere_pl.editing.distributed import follow_parent, is_first_process
from sphere_pl.editing.key_plan import KeyPlan
from sphere_pl.editing.preparation import check_texts
from sphere_pl.editor import SequentialEditor
from sphere_pl.errors import UserError
from sphere_pl.history.by_hand import warn_of_session
from sphere_pl.history.continuation import inherited_requests, open_earlier, warn_of_returning
from sphere_pl.history.fingerprints import settings_that_count
from sphere_pl.model.files import label_of
from sphere_pl.model.known import config_folder
from sphere_pl.process.closing import after_results
from sphere_pl.process.devices import accelerator_is_idle, default_device
from sphere_pl.process.failures import doing, explained
from sphere_pl.progress import EditProgress, tracking
from sphere_pl.run.edit_log import EditLog
from sphere_pl.run.folder import prepare_run_folder
from sphere_pl.run.handover import Handover
from sphere_pl.run.live import LiveReport
from sphere_pl.run.lock import RunLock
from sphere_pl.run.loggers import EditsLogger, run_loggers
from sphere_pl.run.preflight import MemoryPreflight
from sphere_pl.run.results import Results, RunResults
from sphere_pl.run.shortage import shortage
from sphere_pl.run.summaries import method_name
from sphere_pl.run.target_table import TargetTable
from sphere_pl.run.wandb_panels import WandbPanels
from sphere_pl.text.names import check_name, folder_name, literal_names, load_value
from sphere_pl.text.usage import program

log = logging.getLogger(__name__)
Cli = TypeVar("Cli", bound="EditingCLI")


class EditingCLI(LightningCLI):
    """Lightning's command line for `SequentialEditor` and `EditDataModule`."""

    def fit(self, model: LightningModule, **kwargs: Any) -> None:
        """Run the fit, and then give its folder back."""
        with self._held:
            self._fit(model, **kwargs)

    def _fit(self, model: LightningModule, **kwargs: Any) -> None:
        """Run the fit; one that is interrupted, or that memory or disk end, says how to continue."""
        check_strategy(
            self.model.source.device_map, self.trainer
        )  # here, before there are further processes, it is said once
        if self.trainer.local_rank:
            follow_parent()
        try:
            with explained(self._resume_advice, lambda: shortage(self.model, self.datamodule)), doing("editing"):
                self.trainer.fit(model, **kwargs)
        except Exception as error:
            if not self._results.written:
                self._explain(error)
                raise
            with after_results("a last step"):
                raise

    def _explain(self, error: Exception) -> None:
        """Say what became of a run whose processes have lost one another; other errors speak for themselves."""
        # The processes beside a lost one see their next exchange fail, with an error of the network library.
        lost = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
        if isinstance(error, RuntimeError) and self.trainer.world_size > 1 and lost:
            raise UserError(
                f"A process of the run was lost (rank {self.trainer.global_rank} saw: {str(error).splitlines()[0]}). "
                f"{self._resume_advice()}"
            ) from error

    def _resume_advice(self) -> str:
        folder = self._get(self.config_init, "checkpoints").folder(self.trainer)
        return how_to_resume(Path(self._get(self.config_init, "run_dir")), folder, self.datamodule.batch_size)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Editing is a fit; what follows on a saved run are commands of their own."""
        return {"fit": LightningCLI.subcommands()["fit"]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder and the callbacks that every run has."""
        add_fit_arguments(parser)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Add what concerns the help; the arguments of `Trainer.fit` are there by now."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        whole = cast(FitParser, parser).whole_help
        parser.add_argument("--help_all", action=AllHelp, text=whole, help="Show the help of all arguments and exit.")
        argument(parser, "config").help = "A group such as method/memit, or a YAML file; can be given several times."
        argument(parser, "ckpt_path").help = "`last`, or a checkpoint's file, to resume the run in --run_dir."
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and keep the arguments: Lightning starts a process for each further device with `sys.argv`."""
        try:
            super().parse_arguments(parser, args)
        except OmegaConfBaseException as error:
            raise UserError(
                f"A ${{...}} of the configuration could not be resolved: {' '.join(str(error).split())}. Name a value "
                "that is there, such as ${fit.data.batch_size}, or write \\${ for the signs themselves."
            ) from error
        sys.argv[1:] = args

    def _parse_ckpt_path(self) -> None:
        """Take nothing from the checkpoint: a run's settings are in its config.yaml.

        Lightning would read hyperparameters from it with `torch.load`, which before 2.13 knows no safetensors.
        """

    def before_instantiate_classes(self) -> None:
        """Name the run's folder, for all processes alike."""
        config = self.config[self.subcommand]
        config.trainer.callbacks = without_repeats(config.trainer.callbacks)
        check_launch(config.trainer.strategy)
        if config.run_dir is None:
            name = f"{time.strftime('%Y%m%d-%H%M%S')}-{folder_name(label_of(config.model.name))}"
            config.run_dir = str(Path("runs") / name)
            sys.argv.append(f"--run_dir={config.run_dir}")
        check_name("--run_dir", config.run_dir)
        if config["from"] is not None and config.ckpt_path is None:
            check_run_dir(config.run_dir, config["from"])
        # No setting of the run: its config.yaml, given to another fit, must not delete that one's folder.
        self._overwrite, config.overwrite = config.overwrite, False
        if self._overwrite and config.ckpt_path is not None:
            raise UserError("--overwrite deletes the run that --ckpt_path resumes. Leave one of them out.")
        if config.abilities.keep is None:
            kept = Path(config.run_dir) / "abilities.json"  # of a folder that is called `~`, not in the home
            config.abilities.keep = str(kept.absolute() if config.run_dir.startswith("~") else kept)

    def instantiate_classes(self) -> None:
        """Build everything; what a constructor refuses is the user's mistake."""
        try:
            with users_mistakes(), ExitStack() as held:
                self._held = held
                super().instantiate_classes()
                self._held = held.pop_all()
        except RuntimeError as error:
            twice = re.match(r"Found more than one stateful callback of type `\w+`", str(error))
            if twice is None:
                raise
            raise UserError(
                f"{twice.group()}: leave it out of --trainer.callbacks. Those that every run has are set by "
                "--projection.*, --energy.*, --correlation.*, --drift.* and --checkpoints.*."
            ) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with the run's own callbacks after the configured ones, and its loggers."""
        run_dir = self._get(self.config_init, "run_dir")
        self.trainer_defaults["callbacks"] = self.run_callbacks(run_dir)
        self.read_inputs()
        resumed = self._get(self.config_init, "ckpt_path") is not None
        if is_first_process():
            self._held.enter_context(RunLock(run_dir))
            if not resumed:
                prepare_run_folder(Path(run_dir), self._overwrite)
        self.find_settings()
        self._dump_config()
        self._get(self.config_init, "checkpoints").settings = settings_that_count(self.config_dump)
        self._handover.depend_on(self.stream_settings())
        trial = bool(self._get(self.config_init, "trainer").get("fast_dev_run"))
        if trial:  # Lightning would leave the configuration out, and close the loggers that are open already
            self.trainer_defaults["callbacks"].append(RunConfig(self._parser(self.subcommand), self._run_config()))
            kwargs["logger"] = False
        elif self._get(self.config_init, "trainer").get("logger") in (None, True):
            kwargs["logger"] = self.loggers(run_dir, resumed)
            self._held.push(partial(_end_failed, kwargs["logger"]))
        return super().instantiate_trainer(default_root_dir=run_dir, **self.placement(), **kwargs)

    def stream_settings(self) -> dict[str, Any]:
        """Settings of the callbacks whose states belong to the stream of edits."""
        found = {name: self.config_dump.get(name) for name in ("projection", "energy", "correlation")}
        return found | {"callbacks": (self.config_dump.get("trainer") or {}).get("callbacks")}

    def loggers(self, run_dir: str, resumed: bool) -> list[Logger]:
        """What writes the run's curves."""
        settings = self._get(self.config_init, "wandb")
        return run_loggers(run_dir, settings, self.config_dump, self._labels(), resumed)

    def run_callbacks(self, run_dir: str) -> list[Callback]:
        """The callbacks that every run has and no setting takes away, in their order."""
        # Results after the configured callbacks, so that a batch's time includes what they do with it.
        self._results: Results = RunResults(run_dir)
        self._handover = Handover(run_dir)
        kept, gigabytes = (self._get(self.config_init, name) for name in ("edit_log", "edit_log_gigabytes"))
        return [
            *self.progress(),
            MemoryPreflight(),
            LiveReport(run_dir),
            EditLog(run_dir, kept, gigabytes),
            TargetTable(run_dir),
            self._results,
            self._handover,
            self._get(self.config_init, "abilities"),
            WandbPanels(run_dir),
            *([AdapterArtifact(run_dir)] if self._get(self.config_init, "wandb").adapter else []),
        ]

    def progress(self) -> list[Callback]:
        """The progress bar, unless the trainer shall have none."""
        shown = self._get(self.config_init, "trainer").get("enable_progress_bar") is not False
        return [EditProgress(quiet=self._get(self.config_init, "quiet"))] if shown else []

    def read_inputs(self) -> None:
        """Read data and model: a mistake in the data, the model's name or its files ends a run that has no folder."""
        self.datamodule.retry = self._get(self.config_init, "retry")
        check_retry(self.datamodule.retry)
        with doing("reading the data"):
            self.datamodule.setup("fit")
            self.datamodule.check_batches()
            check_subjects(self.model.method, self.datamodule.requests)
            self._get(self.config_init, "abilities").load()
        self.follow()
        if not self.model.method.needs_targets:
            check_used(self.model.method.name, sys.argv[1:])
        self.model.source.open()

    def find_settings(self) -> None:
        """Find what is open of the model's settings and put it into the configuration, for all processes alike."""
        if self.model.source.layers is not None:
            return
        config = self.config[self.subcommand]
        quiet = config.quiet or config.trainer.get("enable_progress_bar") is False
        device = torch.device("cpu") if config.trainer.get("accelerator") == "cpu" else default_device()
        given, lm = self.model.method, self.model.load(device)
        stream = KeyPlan(tuple(self.datamodule.requests), forms=self.datamodule.chat.forms(lm.tokenizer))
        check_texts(lm, stream, range(len(stream.requests)))  # before minutes are spent on the search
        with tracking(quiet) as bars:
            found = self.model.settle(bars)
        log.warning("%s", found.lines())
        targets = self.model.target_settings
        config.model.layers = found.layers
        config.model.targets.learning_rate, config.model.targets.units = targets.learning_rate, targets.units
        sys.argv.append(f"--model.layers={found.layers}")
        if found.learning_rate is not None and targets.learning_rate == found.learning_rate:
            sys.argv += [f"--model.targets.learning_rate={found.learning_rate}", "--model.targets.units=state"]
        for name, value in found.weighed(given).items():
            if f"model.method.init_args.{name}" in config:  # not where the method is an object
                config[f"model.method.init_args.{name}"] = value
            sys.argv.append(f"--model.method.init_args.{name}={value}")

    def follow(self) -> None:
        """Come after the edits of an earlier run, if there is one; a resumed run knows them from its own log."""
        named = self._get(self.config_init, "from")
        if named is None:
            return
        resumed = self._get(self.config_init, "ckpt_path") is not None
        if resumed:
            run_dir = Path(self._get(self.config_init, "run_dir"))
            self.datamodule.follow(inherited_requests(run_dir, Path(named)))
        else:
            with doing("reading the run to continue"):
                folder = from_folder(named)
                warn_of_session(folder)
                self.model.earlier = open_earlier(folder)
            self.datamodule.follow(self.model.earlier.requests)
            warn_of_returning(self.model.earlier, self.datamodule.requests)

    def placement(self) -> dict[str, Any]:
        """Arguments of the trainer that put it on a device, where the configuration leaves that open and must not."""
        if self._get(self.config_init, "trainer").get("accelerator") != "auto" or not accelerator_is_idle():
            return {}
        log.warning("The accelerator of this machine has no double precision, which edits need: the CPU is used.")
        warnings.filterwarnings("ignore", "GPU available but not used")
        return {"accelerator": default_device().type}

    def _run_config(self) -> Any:
        return self.config[self.subcommand]

    def _labels(self) -> list[str]:
        """Method, model and data: what runs are told apart by."""
        configured = self._get(self.config_init, "trainer").get("callbacks") or []
        callbacks = [*(configured if isinstance(configured, list) else [configured])]
        method = method_name(self.model.method, [*callbacks, self._get(self.config_init, "projection")])
        return [method, label_of(self.model.name), self.datamodule.name]


def _end_failed(
    loggers: Sequence[Logger], kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
) -> None:
    """End the wandb run of a fit that failed, before its folder is given back."""
    if isinstance(error, Exception):
        for logger in loggers:
            if isinstance(logger, EditsLogger):
                logger.experiment.finish(exit_code=1)


def run(args: Sequence[str], kind: Callable[..., Cli] = EditingCLI) -> Cli:  # type: ignore[assignment]
    """Parse a command line and run it.

    Args:
        args: The arguments, `fit` first.
        kind: What carries it out.

    Raises:
        UserError: For a user's mistake.
    """
    set_loader("omegaconf+", load_value, (yaml.YAMLError,))
    settings = {"default_config_files": [str(config_folder() / "default.yaml")]}
    return kind(
        SequentialEditor,
        EditDataModule,
        # omegaconf+ resolves ${...} after files, defaults and command line are merged.
        parser_class=FitParser,
        parser_kwargs={
            "parser_mode": "omegaconf+",
            "prog": program(),
            # An argument cut short would escape what reads the command line before the parser does.
            "allow_abbrev": False,
            **{name: {"parser_mode": "omegaconf+", **settings} for name in EditingCLI.subcommands()},
        },
        save_config_callback=RunConfig,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        args=literal_names(resolve_group_files(resolve_resume(resolve_from(args)))),
    )


def main(args: Sequence[str]) -> None:
    """Run `python -m sphere_pl fit`."""
    run(["fit", *args])
