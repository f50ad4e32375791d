"""Files that are either whole or not there."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from sphere_pl.errors import UserError
from sphere_pl.process.failures import doing


def write_atomically(path: Path, write: Callable[[Path], object], durable: bool = False) -> None:
    """Let `write` fill a temporary file beside `path`, then move it into place.

    A crash, a full disk or a second process leaves either the old file or the new one, never half of one.

    Args:
        path: The file to write; its folder is made if need be.
        write: Called with the temporary path.
        durable: Whether to wait until the disk has it, so that a power cut leaves it whole as well.

    Raises:
        UserError: If the folder cannot be written or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        with doing(f"writing {path}"):
            write(temporary)
            temporary.chmod(0o644)
            if durable:
                _wait_for_disk(temporary)
            temporary.replace(path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        # safetensors wraps a full disk in an error of its own.
        if isinstance(error, OSError) or "os error" in str(error).lower() or "No space left" in str(error):
            raise UserError(
                f"{path} could not be written: {error}. Nothing half-written was left. Free disk space or choose "
                "another folder (--run_dir for results, cache_dir for the cache) and run the command again."
            ) from error
        raise


def _wait_for_disk(path: Path) -> None:
    with path.open("r+b") as file:  # Windows waits for a file only if it may be written
        os.fsync(file.fileno())


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process left of `write_atomically`; nobody else may be writing in that folder."""
    for path in folder.glob(".*.part"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text atomically; see `write_atomically`."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def append_text(path: Path, text: str) -> None:
    """Add text to a file. A crash may leave half of it: what reads the file after one must expect that.

    Raises:
        UserError: If the folder cannot be written or the disk is full.
    """
    try:
        with doing(f"writing {path}"), path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(
            f"{path} could not be added to: {error}. Free disk space or choose another --run_dir and run the command "
            "again."
        ) from error


def expanded(path: str | Path) -> Path:
    """A path in which `~` and `~user` may stand for a home; where they stand for nobody's, it is taken as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # such as `~5`, or `~` itself where nothing says what is home
        return Path(path)


# Names that end so are files, whether they are there or not.
_DATA_SUFFIXES = {
    ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".parquet", ".gz", ".bz2", ".xz", ".zip", ".xlsx", ".yaml",
}  # fmt: skip


def is_local(path: str) -> bool:
    """Whether a name given by the user means a file rather than something on the hub."""
    return expanded(path).exists() or Path(path).suffix.lower() in _DATA_SUFFIXES
