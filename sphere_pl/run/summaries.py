"""What a run's callbacks say of themselves, and where it goes: into the run's name and into results.json.

A callback takes part by having the attributes, whoever wrote it:

- `label`: what it does to the updates, in a word for the run's name, such as "RECT"; empty if it does nothing to them.
- `summary_name` and `summary()`: an entry of results.json, and the dictionary that stands there at the end of the run.
"""

import json
import logging
import math
from collections.abc import Collection, Iterable
from typing import Any

from sphere_pl.errors import UserError
from sphere_pl.methods.base import Method
from sphere_pl.text.method_names import display_name

log = logging.getLogger(__name__)


def transforms_of(callbacks: Iterable[object]) -> list[str]:
    """What the updates pass through, in the order of the callbacks.

    Example:
        >>> from sphere_callbacks import RelativeMask, SparseProjection
        >>> transforms_of([RelativeMask(), SparseProjection(strength=0.5), SparseProjection(strength=0.0)])
        ['RECT', 'SPHERE']
    """
    labels = (getattr(callback, "label", None) for callback in callbacks)
    return [label for label in labels if isinstance(label, str) and label]


def method_name(method: Method, callbacks: Iterable[object]) -> str:
    """The method and what its updates pass through."""
    return display_name(method.name, transforms_of(callbacks))


def check_summaries(callbacks: Iterable[object], taken: Collection[str]) -> None:
    """Refuse summaries that could not be written, before anything is edited.

    Args:
        callbacks: The trainer's callbacks.
        taken: Entries of results.json that are the run's own.

    Raises:
        UserError: If a name is the run's own, or there is nothing to call under it.
    """
    for name, callback in _named(callbacks):
        kind = type(callback).__name__
        if name in taken:
            raise UserError(
                f"`{kind}.summary_name = {name!r}` is an entry that every results.json has of its own. Give the "
                "callback another name."
            )
        if not callable(getattr(callback, "summary", None)):
            raise UserError(f"`{kind}` has `summary_name = {name!r}`, but no method `summary()` to fill it.")


def summaries_of(callbacks: Iterable[object]) -> dict[str, Any]:
    """What the callbacks leave in results.json, by `summary_name`.

    Callbacks of one name, such as two that watch different matrices, share the entry; what both have is the first
    one's. A summary that fails is a warning and None: the other results are worth more.
    """
    found: dict[str, Any] = {}
    for name, callback in _named(callbacks):
        summary = _summary(name, callback)
        earlier = found.get(name)
        both = isinstance(summary, dict) and isinstance(earlier, dict)
        found[name] = summary | earlier if both else summary if earlier is None else earlier
    return found


def plain(value: Any) -> Any:
    """Named tuples, tensors and arrays as JSON can hold them; NaN and infinity are no JSON: null in their place."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _summary(name: str, callback: Any) -> Any:
    try:
        summary = plain(callback.summary())
        json.dumps(summary)
    except Exception as error:
        kind, reason = type(callback).__name__, " ".join(str(error).split()) or type(error).__name__
        log.warning("`%s.summary()` failed (%s): results.json holds null as %r.", kind, reason, name)
        return None
    return summary


def _named(callbacks: Iterable[object]) -> list[tuple[str, object]]:
    """Callbacks that have a name for their summary."""
    named = [(getattr(callback, "summary_name", None), callback) for callback in callbacks]
    return [(name, callback) for name, callback in named if isinstance(name, str) and name]
