"""`--run_dir R --ckpt_path last`: a run resumes with its own configuration and its newest whole checkpoint."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import yaml
from lightning.pytorch.cli import SaveConfigCallback
from typing_extensions import override

from sphere_pl.errors import UserError
from sphere_pl.run.checkpoints import checkpoint_paths, newest_checkpoint
from sphere_pl.run.folder import has_logged_edits, logged_batches
from sphere_pl.storage.checkpoint_file import read_checkpoint
from sphere_pl.storage.files import write_text
from sphere_pl.text.names import from_yaml, option, resume_command, to_yaml
from sphere_pl.text.numbers import counted

log = logging.getLogger(__name__)


def resolve_resume(args: Sequence[str]) -> list[str]:
    """Turn `--ckpt_path last` into a file, and put the run's own configuration before all other arguments.

    Raises:
        UserError: If no run folder is named, or the checkpoint named is no whole one.
    """
    checkpoint, run_dir = value_of(args, "ckpt_path"), value_of(args, "run_dir")
    if not args or args[0] != "fit" or checkpoint in {None, "null", "None"}:
        return list(args)
    if checkpoint == "last":
        if run_dir is None:
            raise UserError("--ckpt_path=last needs --run_dir=<folder of the run to resume>.")
        folder = Path(run_dir)
        if not (folder / "config.yaml").is_file() and len(_without(_without(args[1:], "ckpt_path"), "run_dir")) == 0:
            raise UserError(
                f"--ckpt_path=last: there is no run in {run_dir} to resume. Is --run_dir mistyped? Given with the "
                "whole command of a run, the option begins it there."
            )
        found = _last(folder)
    else:
        found, folder = _named(checkpoint), Path(run_dir or Path(checkpoint).parent.parent)
    rest = _without(args[1:], "ckpt_path")
    config = [f"--config={folder / 'config.yaml'}"] if (folder / "config.yaml").is_file() else []
    if found is not None:
        rest.append(f"--ckpt_path={found}")
    elif _cut_off_early(folder):
        rest.append("--overwrite")
    return [args[0], *config, *rest]


def _cut_off_early(folder: Path) -> bool:
    """Whether a run was killed after its first edits, before a checkpoint of them was due: it makes them again."""
    try:
        config = from_yaml((folder / "config.yaml").read_text(encoding="utf-8"))
        every = config["checkpoints"]["every_n_batches"]
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return False
    return isinstance(every, int) and 0 < logged_batches(folder) <= every


def _last(run_dir: Path) -> Path | None:
    if (run_dir / "results.json").exists() and not checkpoint_paths(run_dir / "checkpoints"):
        raise UserError(
            f"The run in {run_dir} is finished: its results are in results.json. There is nothing to do. To add facts "
            f"to it, give {option('--from', run_dir)} in the place of --ckpt_path."
        )
    found = newest_checkpoint(run_dir / "checkpoints")
    if found is None:
        log.warning("%s holds no checkpoint: the run begins from the start.", run_dir)
    return found


def _named(checkpoint: str) -> Path:
    path = Path(checkpoint)
    if not path.is_file():
        raise UserError(f"--ckpt_path={checkpoint} is no file. Give a checkpoint written by an earlier fit, or `last`.")
    if "sphere_pl" not in read_checkpoint(path):
        raise UserError(
            f"--ckpt_path={checkpoint} was not written by an editing run: it holds no `sphere_pl` entry. Give a "
            "checkpoint written by an earlier fit, or `last`."
        )
    return path


def value_of(args: Sequence[str], name: str) -> str | None:
    """The last value given for an option, as `--name value` or `--name=value`."""
    found = None
    for arg, following in zip(args, [*args[1:], None], strict=True):
        if arg == f"--{name}":
            found = following
        elif arg.startswith(f"--{name}="):
            found = arg.partition("=")[2]
    return found or None


def _without(args: Sequence[str], name: str) -> list[str]:
    """The arguments but for one option and its value."""
    kept, skip = [], False
    for arg in args:
        if not skip and arg != f"--{name}" and not arg.startswith(f"--{name}="):
            kept.append(arg)
        skip = arg == f"--{name}"
    return kept


def how_to_resume(run_dir: Path, checkpoints: Path, batch_size: int) -> str:
    """What to do after a run that did not end well.

    Args:
        run_dir: Its folder.
        checkpoints: Where its checkpoints are.
        batch_size: Edits in a batch.
    """
    paths = checkpoint_paths(checkpoints)
    if not paths and has_logged_edits(run_dir):
        return "No checkpoint had been written yet; the same command with --overwrite begins again."
    if not paths:
        return "Nothing had been edited and saved yet; the same command begins again."
    size, batches = counted(batch_size, "edit"), int(paths[-1].stem.rpartition("-")[2])
    last = "last" if checkpoints == run_dir / "checkpoints" else str(paths[-1])
    saved = counted(batches, f"batch of {size} is", f"batches of {size} are")
    return f"{saved} saved. Resume with: {resume_command(run_dir, last)}"


class RunConfig(SaveConfigCallback):
    """Keeps the configuration in the run folder, whole or not at all; a resumed run leaves it as it is."""

    @override
    def setup(self, trainer: "L.Trainer", pl_module: "L.LightningModule", stage: str) -> None:
        """Nothing yet: whether the run resumes from a checkpoint is known at the start of the fit."""

    @override
    def on_fit_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Write config.yaml, on the first rank."""
        path = Path(self.config.run_dir) / "config.yaml"
        if trainer.is_global_zero and not (trainer.ckpt_path and path.exists()):
            values = json.loads(self.parser.dump(self.config, skip_none=False, format="json"))
            write_text(path, to_yaml(values))
