"""One process at a time writes in a run folder."""

import shutil
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from sphere_pl.errors import UserError

# What a run writes before its first batch, all of which a new start writes again.
_STARTED = {"config.yaml", "report.html", "wandb"}


class RunLock:
    """Holds a run folder for this process inside a `with`.

    The operating system gives the lock back when the process ends, however it ends: a killed run leaves none behind.
    The file itself stays, empty; whether it is there says nothing. A folder that was made for it and in which nothing
    else was written goes with it; so it does after an error if it holds no more than what every start writes.

    Args:
        run_dir: The run folder; it is made if need be.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.path = Path(run_dir) / ".lock"
        self._lock = FileLock(self.path, timeout=0)
        self._made = self._made_parent = False

    def __enter__(self) -> None:
        """Take the folder.

        Raises:
            UserError: If another process holds it.
        """
        self._made = not self.path.parent.exists()
        self._made_parent = not self.path.parent.parent.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise UserError(
                f"Another process is editing in {self.path.parent} at this moment. Wait until it has ended, or name "
                "another --run_dir."
            ) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the folder back."""
        folder = self.path.parent
        idle = {self.path.name} | (_STARTED if isinstance(error, Exception) else set())
        if self._made and {path.name for path in folder.iterdir()} <= idle:
            shutil.rmtree(folder, ignore_errors=True)
            if self._made_parent and not any(folder.parent.iterdir()):
                folder.parent.rmdir()
        self._lock.release()
