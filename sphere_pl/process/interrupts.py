"""Ctrl-C, SIGTERM and a closed terminal: the batch at hand is finished, a second signal drops it."""

import os
import signal
import stat
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

_HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none


class RunInterrupted(BaseException):
    """The user or the system asked the run to stop.

    No `Exception`, so that nothing on its way takes it for an error of its own.

    Args:
        signum: The signal.

    Attributes:
        advice: How the run is resumed, from who knows it.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.advice = ""


class Interrupts:
    """Handlers of SIGINT, SIGTERM and SIGHUP for the time of a fit, or inside a `with`.

    A signal that nohup has switched off stays so.

    Attributes:
        asked: The signal that has come, None before.
        patient: Whether the first signal waits for the batch at hand; without one, it ends the run at once.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.patient = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        """Take the signals over."""
        self.watch()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        self.release()

    def watch(self) -> None:
        """Take the signals over; only the main thread of a process can."""
        if threading.current_thread() is not threading.main_thread():
            return
        self.asked = None
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, self._receive)
        if _HANGUP is not None and signal.getsignal(_HANGUP) != signal.SIG_IGN:
            self._before[_HANGUP] = signal.signal(_HANGUP, self._receive)

    def release(self) -> None:
        """Give the signals back."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if signum == _HANGUP:
            _leave_dead_terminal()
        if not self.patient or self.asked is not None:
            self.asked = signum
            raise RunInterrupted(signum)
        self.asked = signum
        with suppress(OSError):
            sys.stderr.write("\nFinishing the batch at hand, then saving. A second signal drops that batch.\n")


def _leave_dead_terminal() -> None:
    """Let what would be written to a terminal that is closed go nowhere: writing to it is an error."""
    for descriptor in (1, 2):
        with suppress(OSError):
            # One that is closed is still a character device, but no longer answers as a terminal.
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
