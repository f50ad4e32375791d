"""What can be given to `fit`: its parser, the arguments of a run, and those that would change nothing."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from sphere_callbacks import EnergyCorrelation, HypersphericalEnergy, SparseProjection
from sphere_pl.abilities.callback import GeneralAbilities
from sphere_pl.commands.parsers import Explained
from sphere_pl.commands.short_help import short_help
from sphere_pl.errors import UserError
from sphere_pl.history.log import Kept
from sphere_pl.run.checkpoints import RunCheckpoints
from sphere_pl.run.drift import Drift
from sphere_pl.run.loggers import WandbSettings


class FitParser(Explained, LightningArgumentParser):
    """Lightning's parser; errors as in `Explained`, and a help of one screen where there is an `--help_all`."""

    more_help = ", all arguments: --help_all"

    def whole_help(self) -> str:
        """All arguments."""
        return super().format_help()

    @override
    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """The arguments that most runs need."""
        if "--help_all" not in self._option_string_actions:
            return super().format_help(*args, **kwargs)
        return short_help(self, self.get_defaults())


def add_fit_arguments(parser: LightningArgumentParser) -> None:
    """Add what a run has beside model, data and trainer: its folder, its log, and the callbacks that every run has."""
    # No `str | None`: a folder may be called `null`.
    parser.add_argument("--run_dir", type=str, default=None, help="Folder of the run; runs/<time>-<name> if left out.")
    parser.add_argument(
        "--from", type=str, default=None, help="Run folder of a finished run to continue, with its settings."
    )
    parser.add_argument("--overwrite", action="store_true", help="Delete the run that --run_dir holds.")
    parser.add_argument("--wandb", type=WandbSettings, default=WandbSettings(), help="The run's place in wandb.")
    parser.add_argument(
        "--edit_log",
        type=Kept,
        default="all",
        help="What edits.jsonl and edits/ keep of every batch: all, changes (no keys and residuals) or none.",
    )
    parser.add_argument("--edit_log_gigabytes", type=float, default=20.0, help="Size limit of edits/.")
    parser.add_argument(
        "--retry",
        type=int | float,
        default=0,
        help="Edit so many of the edits that failed again, at most, in last batches; below 1 a share of all.",
    )
    parser.add_argument("--quiet", type=bool, default=False, help="Show no progress.")
    parser.add_lightning_class_args(SparseProjection, "projection")
    parser.add_lightning_class_args(HypersphericalEnergy, "energy")
    parser.add_lightning_class_args(EnergyCorrelation, "correlation")
    parser.add_lightning_class_args(Drift, "drift")
    # No callback key of its own: it goes after RunResults, so that its time is no batch's time.
    parser.add_class_arguments(GeneralAbilities, "abilities")
    parser.add_lightning_class_args(RunCheckpoints, "checkpoints")


def without_repeats(callbacks: Any) -> Any:
    """Callbacks without those that stand there twice alike.

    A resumed run takes its own configuration; the `callbacks+:` of the same command given again would add its own.
    """
    if not isinstance(callbacks, list):
        return callbacks
    return [each for index, each in enumerate(callbacks) if each not in callbacks[:index]]


def check_used(method: str, args: Sequence[str]) -> None:
    """Refuse options of the target optimisation, given by hand to a method that has no targets.

    Those that come with the default configuration are left alone.

    Args:
        method: The method's name.
        args: The command line.

    Raises:
        UserError: If there are any.
    """
    used = ("--model.targets.anchor", "--model.targets.max_tokens")  # refused by the editor; used by every method
    idle = [each for each in args if each.startswith("--model.targets.") and each.split("=")[0] not in used]
    if idle:
        raise UserError(
            f"{method} optimises no target values: `{' '.join(idle)}` would change nothing. Leave it out, or choose a "
            "method that solves for target values, such as --config method/alphaedit."
        )
