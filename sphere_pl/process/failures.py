"""What ends a run although nobody made a mistake: memory or disk that is used up. Recognised, and said in one message.

What was being done is carried by the exception itself, as a note that `doing` adds on its way up. So there is no state
to keep, and who uses the framework from Python sees the same line under the traceback.
"""

import errno
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from textwrap import shorten

from sphere_pl.errors import UserError
from sphere_pl.process.interrupts import RunInterrupted

_NOTE = "While "
_LONGEST = 200  # characters of a library's own words
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_TEXT = re.compile(r"no space left|disk quota exceeded|file too large|os error (28|122|27)\b", re.IGNORECASE)
# Most say it in words only: PyTorch's allocators, oneDNN, cuBLAS and its kin, C++, mmap, safetensors, threads.
_MEMORY_TEXT = re.compile(
    r"out of memory|can(.?t|not) allocate memory|not enough memory|unable to allocate|failed to allocate|bad.?alloc"
    r"|could not create a (primitive|memory)|STATUS_ALLOC_FAILED|STATUS_NOT_INITIALIZED.*cublasCreate"
    r"|can't start new thread|failed to map segment|os error 12\b",
    re.IGNORECASE | re.DOTALL,
)


class MemoryShortageError(UserError):
    """Memory of the machine or of its accelerator did not suffice."""

    status = 3


class DiskFullError(UserError):
    """There was no room left for a file."""


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Name what is being done, as a `with` or as a decorator, for the message of whatever ends it.

    Args:
        what: A phrase that continues "while", such as "measuring second moments". The innermost one counts.

    Example:
        >>> try:
        ...     with doing("writing a checkpoint"):
        ...         raise OSError("no space left")
        ... except OSError as error:
        ...     stage(error)
        'writing a checkpoint'
    """
    try:
        yield
    except BaseException as error:
        error.add_note(f"{_NOTE}{what}.")
        raise


def stage(error: BaseException) -> str:
    """What was being done when an exception arose; empty if nobody has said."""
    for each in reversed(_chain(error)):
        for note in getattr(each, "__notes__", ()):
            if note.startswith(_NOTE):
                return str(note)[len(_NOTE) : -1]
    return ""


def out_of_memory(error: BaseException) -> BaseException | None:
    """The exception, among those that led to this one, that says that memory was used up."""
    return next((each for each in _chain(error) if _lacks_memory(each)), None)


def disk_full(error: BaseException) -> BaseException | None:
    """The exception, among those that led to this one, that says that a disk is full."""
    return next((each for each in _chain(error) if _lacks_space(each)), None)


def _chain(error: BaseException) -> list[BaseException]:
    """An exception and those that it was raised from or while handling, from the last to the first."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        context = None if following.__suppress_context__ else following.__context__
        following = following.__cause__ or context
    return chain


def _lacks_memory(error: BaseException) -> bool:
    # By name: torch is not to be imported for this, and its class stands under several names.
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    return _of_a_library(error) and bool(_MEMORY_TEXT.search(str(error)))


def _lacks_space(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return _of_a_library(error) and bool(_FULL_TEXT.search(str(error)))


def _of_a_library(error: BaseException) -> bool:
    """Whether the words are not our own, which may quote what the user gave."""
    return isinstance(error, Exception) and not isinstance(error, UserError)


@contextmanager
def explained(advice: Callable[[], str], memory: Callable[[], str] = str) -> Iterator[None]:
    """Say in one message what ended the work inside, if nobody made a mistake; all other exceptions pass.

    Args:
        advice: How to continue; asked only if it is needed. An interruption takes it along.
        memory: What was needed and free, and what needs less; asked while what fills the memory is still held.

    Raises:
        MemoryShortageError: If memory was used up.
        DiskFullError: If a disk was.
    """
    try:
        yield
    except RunInterrupted as interruption:
        interruption.advice = interruption.advice or advice()
        raise
    except (MemoryShortageError, DiskFullError):  # said already, by who knows more
        raise
    except Exception as error:
        lacking, full = out_of_memory(error), disk_full(error)
        if lacking is None and full is None:
            raise
        lines = [_ended("Out of memory", lacking, stage(error)), memory()] if lacking else []
        lines = lines or [_ended("The disk is full", full, stage(error)), "What was saved before is whole. Free space."]
        traceback.clear_frames(error.__traceback__)  # they hold what filled the memory
        kind = MemoryShortageError if lacking else DiskFullError
        raise kind("\n".join(line for line in (*lines, advice()) if line)) from error


def interrupted(error: BaseException) -> str:
    """One message for an interruption: what was being done, and how to continue."""
    what = stage(error)
    advice = error.advice if isinstance(error, RunInterrupted) else ""
    return f"Interrupted{what and f' while {what}'}. {advice}".rstrip()


def _ended(what: str, error: BaseException | None, doing: str) -> str:
    reason = (getattr(error, "strerror", None) or str(error) or "no more could be had").strip().splitlines()[0]
    return f"{what}{doing and f' while {doing}'}: {shorten(reason, _LONGEST).rstrip('.')}."
