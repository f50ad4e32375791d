"""The run folders that a session makes, one after another; at any moment one of them counts."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sphere_pl.errors import UserError
from sphere_pl.history.by_hand import CURRENT, SESSION
from sphere_pl.history.log import LOG_FILE, log_digest
from sphere_pl.storage.files import write_text

_STATE = re.compile(r"\d{5}")


class States:
    """Which run folder holds the edits that a session has made so far.

    Every change is a run of its own in `<run_dir>/serving/<number>`, complete before `current.json` names it. A process
    that is killed leaves at worst a folder that nothing names, which the next session deletes. Only the newest is kept:
    its log begins with those of all before it.

    Args:
        run_dir: The folder that is served. A run that it holds stays as it is.

    Raises:
        UserError: If the run in it is another one than the edits were made on, or they are gone.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.folder = run_dir, run_dir / SESSION
        self._origin = log_digest(run_dir) if (run_dir / LOG_FILE).is_file() else None
        self.current = self._read() if (self.folder / CURRENT).is_file() else self.origin
        self._tidy()

    @property
    def origin(self) -> Path | None:
        """The run that the session began with; None if it began with an unedited model."""
        return None if self._origin is None else self.run_dir

    @contextmanager
    def new(self) -> Iterator[Path]:
        """A folder for a change, which counts from the end of the `with` on; after an error it is gone."""
        numbers = [int(path.name) for path in self._all()]
        target = self.folder / f"{max(numbers, default=0) + 1:05d}"
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            yield target
            self._name(target)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise

    def clear(self) -> None:
        """Go back to the unedited model that the session began with."""
        self._name(None)

    def _name(self, target: Path | None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        named = {"state": None if target is None else target.name, "origin_log_sha256": self._origin}
        write_text(self.folder / CURRENT, json.dumps(named))
        self.current = target
        self._tidy()

    def _read(self) -> Path | None:
        path = self.folder / CURRENT
        try:
            named = json.loads(path.read_text(encoding="utf-8"))
            state, origin = named["state"], named["origin_log_sha256"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path} could not be read: {error!r}. Restore it from a copy.") from error
        if origin != self._origin:
            raise UserError(
                f"{self.folder} holds edits of another run than the one in {self.run_dir} now. Serve another folder, "
                f"or move {self.folder} away."
            )
        if state is None:
            return None
        if not isinstance(state, str) or not _STATE.fullmatch(state) or not (self.folder / state / LOG_FILE).is_file():
            raise UserError(f"{path} names {state!r}, which is no run in {self.folder}. Restore it from a copy.")
        return self.folder / state

    def _all(self) -> list[Path]:
        return [path for path in self.folder.glob("[0-9]*") if _STATE.fullmatch(path.name)]

    def _tidy(self) -> None:
        """Delete what no longer counts, and what a killed process has left."""
        for path in self._all():
            if path != self.current:
                shutil.rmtree(path, ignore_errors=True)
