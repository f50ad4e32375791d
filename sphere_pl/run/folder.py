"""Whose folder it is that a new run is given, and what an earlier run has written there."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from sphere_pl.errors import UserError
from sphere_pl.run.checkpoints import checkpoint_paths
from sphere_pl.text.names import from_yaml, resume_command

_FILES = (
    "config.yaml", "metrics.csv", "results.json", "edited.safetensors", "report.html", "targets.csv", "edits.jsonl",
    "abilities.json", "predictions.json", "validation.json", "continue.safetensors",
)  # fmt: skip
_ONLY_A_RUNS = ("results.json", "edits.jsonl", "metrics.csv", "edited.safetensors")
_EXPORT = re.compile(r"(export|delta|adapter)(-at-\d+)?(-without)?")
_WANDB = ("run-*", "offline-run-*", "latest-run", "debug*.log", "files-*")


def prepare_run_folder(folder: Path, overwrite: bool) -> None:
    """Make sure that a new run shares its folder with nothing of another one.

    What a run left that had edited nothing is cleared away; anything else only if that is asked for.

    Args:
        folder: The run folder; it may be missing.
        overwrite: Whether an earlier run is to be deleted.

    Raises:
        UserError: If the folder holds a run that is worth keeping, or files of something else under a run's names.
    """
    if not folder.is_dir():
        return
    if not is_run(folder):
        _refuse_foreign(folder, overwrite)
        return
    if not overwrite:
        _refuse_earlier(folder)
    clear_run(folder, () if overwrite else ("abilities.json",))  # what has been scored of the unedited model holds on


def is_run(folder: Path) -> bool:
    """Whether a fit has written in this folder."""
    if any((folder / name).is_file() for name in _ONLY_A_RUNS) or checkpoint_paths(folder / "checkpoints"):
        return True
    try:
        config = from_yaml((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(config, dict) and {"run_dir", "edit_log"} <= set(config)


def clear_run(folder: Path, kept: Sequence[str] = ()) -> None:
    """Delete what a run, and the commands on it, have written under their own names; other files stay."""
    for name in set(_FILES).difference(kept):
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob(".*.part"):
        path.unlink(missing_ok=True)
    for path in checkpoint_paths(folder / "checkpoints"):
        path.unlink()
    for path in [*(folder / "edits").glob("batch-*.safetensors"), *(folder / "checkpoints").glob("*.ckpt")]:
        path.unlink()
    for path in _exports(folder):
        shutil.rmtree(path)
    for path in (each for pattern in _WANDB for each in (folder / "wandb").glob(pattern)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    for path in (folder / "edits", folder / "checkpoints", folder / "wandb"):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _exports(folder: Path) -> list[Path]:
    """Folders that `export` has written beside a run, each with the list of its edits."""
    return [path for path in folder.iterdir() if _EXPORT.fullmatch(path.name) and (path / "edits.json").is_file()]


def _refuse_foreign(folder: Path, overwrite: bool) -> None:
    taken = [name for name in (*_FILES, "edits", "checkpoints") if (folder / name).exists()]
    if taken:
        raise UserError(
            f"{folder} is no run's folder, but holds {', '.join(taken)}, which a run would write. Name a new folder "
            "with --run_dir."
        )
    if overwrite and any(path.name != ".lock" for path in folder.iterdir()):
        raise UserError(f"--overwrite: {folder} is no run's folder; nothing in it is deleted. Leave --overwrite out.")


def has_logged_edits(folder: Path) -> bool:
    """Whether the log of a run folder holds a batch of the run's own."""
    return logged_batches(folder) > 0


def logged_batches(folder: Path) -> int:
    """How many batches of the run's own the log of a run folder holds."""
    log = folder / "edits.jsonl"
    header, *entries = log.read_bytes().splitlines() if log.is_file() else [b""]
    return len(entries) - _inherited(header)


def _inherited(header: bytes) -> int:
    """How many entries of a log its run has found there, from the first line."""
    try:
        return int(json.loads(header)["ancestors"][-1]["entries"])
    except (ValueError, LookupError, TypeError):
        return 0


def _refuse_earlier(folder: Path) -> None:
    ways = "name another --run_dir, or delete the earlier run with --overwrite"
    if (folder / "results.json").exists():
        raise UserError(f"{folder} holds a finished run. To keep it, {ways}.")
    if checkpoint_paths(folder / "checkpoints"):
        raise UserError(f"{folder} holds a run that was interrupted. Resume it: {resume_command(folder)}. Or {ways}.")
    if has_logged_edits(folder):
        raise UserError(f"{folder} holds the edits of a run that left no checkpoint. To keep them, {ways}.")
