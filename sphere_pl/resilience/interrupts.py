"""Ctrl-C and SIGTERM: the batch at hand is finished, a second signal drops it."""

import signal
import sys
import threading
from types import FrameType
from typing import Any


class RunInterrupted(BaseException):
    """The user or the system asked the run to stop.

    No `Exception`, so that nothing on its way takes it for an error of its own.

    Args:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Interrupts:
    """Handlers of SIGINT and SIGTERM for the time of a fit.

    Attributes:
        asked: The signal that has come, None before.
        patient: Whether the first signal waits for the batch at hand; without one, it ends the run at once.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.patient = False
        self._before: dict[int, Any] = {}

    def watch(self) -> None:
        """Take over both signals; only the main thread of a process can."""
        if threading.current_thread() is threading.main_thread():
            self.asked = None
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._receive)

    def release(self) -> None:
        """Give both signals back."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if not self.patient or self.asked is not None:
            self.asked = signum
            raise RunInterrupted(signum)
        self.asked = signum
        sys.stderr.write("\nFinishing the batch at hand, then saving. A second signal drops that batch.\n")
