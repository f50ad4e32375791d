"""Steps that cannot fail a run: what it can do without, and all that follows its results."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def after_results(what: str) -> Iterator[None]:
    """Run a step that follows when the results are on disk; if it fails, that is one warning.

    Every such step goes through here: figures for wandb, report, table, clean-up, whatever a library does at the end.

    Args:
        what: The step, as the warning names it.

    Example:
        >>> with after_results("the table"):
        ...     raise OSError("no space left")
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        log.warning("The results are saved, but not all that follows: %s failed (%s).", what, reason)


class Dispensable:
    """Steps that a run can do without, such as its figures in wandb: a failure is said once and ends nothing.

    Args:
        what: What they belong to, as the warning names it.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.failed = False

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Try one step."""
        try:
            yield
        except Exception as error:
            if not self.failed:
                log.warning("%s failed, and may lack some of what the run logs: %s", self.what, error)
            self.failed = True
