"""The command line: Lightning's, with group files found by name and a folder for every run."""

import errno
import importlib
import logging
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from sphere_callbacks import EnergyCorrelation, HypersphericalEnergy, SparseProjection
from sphere_pl.configs import config_folder, resolve_group_files
from sphere_pl.data.datamodule import EditDataModule
from sphere_pl.editor import SequentialEditor
from sphere_pl.errors import UserError
from sphere_pl.live import LiveReport
from sphere_pl.loggers import WandbSettings, run_loggers
from sphere_pl.progress import EditProgress
from sphere_pl.results import RunResults, method_name
from sphere_pl.tracking import WandbPanels

# Commands beside Lightning's own: each module has a `main(args)`.
_COMMANDS = {"compare": "sphere_pl.compare", "dashboard": "sphere_pl.dashboard"}

_DISK_TROUBLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.ENOENT,
}


class EditingCLI(LightningCLI):
    """Lightning's command line for `SequentialEditor` and `EditDataModule`."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Editing is a fit; scoring a saved run has no command yet."""
        return {"fit": LightningCLI.subcommands()["fit"]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder and the callbacks that every run has."""
        parser.add_argument("--run_dir", type=str | None, help="Folder of the run; runs/<time>-<name> if left out.")
        parser.add_argument("--wandb", type=WandbSettings, default=WandbSettings(), help="The run's place in wandb.")
        parser.add_argument("--quiet", type=bool, default=False, help="Show no progress.")
        parser.add_lightning_class_args(SparseProjection, "projection")
        parser.add_lightning_class_args(HypersphericalEnergy, "energy")
        parser.add_lightning_class_args(EnergyCorrelation, "correlation")

    def before_instantiate_classes(self) -> None:
        """Name the run's folder."""
        config = self.config[self.subcommand]
        if config.run_dir is None:
            config.run_dir = str(Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(config.model.name).name}")

    def instantiate_classes(self) -> None:
        """Build everything; what a constructor refuses is the user's mistake."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            raise UserError(str(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with the run's own callbacks behind the configured ones, and its loggers."""
        run_dir = self._get(self.config_init, "run_dir")
        # RunResults stands behind all that act on a batch, so that a batch's time includes what they do with it.
        self.trainer_defaults["callbacks"] = [
            EditProgress(quiet=self._get(self.config_init, "quiet")),
            LiveReport(run_dir),
            RunResults(run_dir),
            WandbPanels(run_dir),
        ]
        # A mistake in the data ends the run before anything is written.
        self.datamodule.setup("fit")
        checkpoint = self._get(self.config_init, "ckpt_path")
        if checkpoint not in {None, "last", "best", "hpc", "registry"} and not Path(checkpoint).is_file():
            raise UserError(f"--ckpt_path={checkpoint} is no file. Give a checkpoint written by an earlier fit.")
        if self._get(self.config_init, "trainer").get("logger") in (None, True):
            self._dump_config()
            settings = self._get(self.config_init, "wandb")
            kwargs["logger"] = run_loggers(run_dir, settings, self.config_dump, self._labels())
        kwargs["default_root_dir"] = run_dir
        return super().instantiate_trainer(**kwargs)

    def _labels(self) -> list[str]:
        """Method, model and data: what runs are told apart by."""
        configured = self._get(self.config_init, "trainer").get("callbacks") or []
        callbacks = [*(configured if isinstance(configured, list) else [configured])]
        method = method_name(self.model.method, [*callbacks, self._get(self.config_init, "projection")])
        return [method, Path(self.model.name).name, self.datamodule.name]


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
        save_config_kwargs={"overwrite": True},
        auto_configure_optimizers=False,
        seed_everything_default=0,
        args=resolve_group_files(args),
    )


def main() -> None:
    """Entry point of `python -m sphere_pl`; a user's mistake ends it with one message and status 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    _quieten()
    # LightningCLI takes its arguments either from here or from sys.argv, and warns if it sees both.
    args, sys.argv[1:] = sys.argv[1:], []
    try:
        if args and args[0] in _COMMANDS:
            importlib.import_module(_COMMANDS[args[0]]).main(args[1:])
        else:
            run(args)
    except (UserError, MisconfigurationException) as error:
        _give_up(str(error))
    except OSError as error:
        if error.errno not in _DISK_TROUBLE:
            raise
        _give_up(
            f"{error.filename or 'A file of the run'} could not be opened or written: {error.strerror}. Free "
            "disk space, correct the path, or choose another folder with --run_dir, and run the command again."
        )


def _give_up(message: str) -> None:
    sys.stderr.write(f"error: {message}\n")
    sys.exit(2)


def _quieten() -> None:
    """Leave out remarks of libraries that do not concern an editing run."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # The hub's retries: what could not be had is said once, at the end.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    # The edits' data loader yields ready batches; workers would only copy strings.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    # The language model is in eval mode all through a fit, on purpose.
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")
    # lightning 2.6 asks torch 2.13 in a way that is about to change.
    warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
