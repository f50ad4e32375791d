"""Where the runs of an editing session are: `serving` in the folder that was served, one after another."""

import json
import logging
from pathlib import Path

from sphere_pl.history.log import LOG_FILE

log = logging.getLogger(__name__)
SESSION = "serving"
CURRENT = "current.json"  # names the run that counts


def newest_run(folder: Path) -> Path:
    """The run that counts, if a folder is that of a session; the folder itself if it is none."""
    if (folder / LOG_FILE).is_file():
        return folder
    named = _current(folder)
    return folder if named is None else named


def warn_of_session(folder: Path) -> None:
    """Say that a run was edited on by hand, where a command takes the run alone."""
    if (folder / LOG_FILE).is_file() and _current(folder / SESSION) is not None:
        log.warning(
            "%s was edited on by hand (`serve`); these edits are left out here. Name %s to have them.",
            folder,
            folder / SESSION,
        )


def lasting(folder: Path) -> Path:
    """Where what is made of a run can lie: in its folder, or in the served one if the next edit deletes that."""
    return folder.parent.parent if folder.parent.name == SESSION else folder


def _current(session: Path) -> Path | None:
    """The run that a session names; None if it is no session, has none left, or cannot be read."""
    try:
        state = json.loads((session / CURRENT).read_text(encoding="utf-8"))["state"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    named = session / state if isinstance(state, str) else None
    return named if named is not None and (named / LOG_FILE).is_file() else None
