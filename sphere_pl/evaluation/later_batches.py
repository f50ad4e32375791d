"""A look at the model every hundred edits: what has broken it, or worn it out, is said where it happens."""

import math
from typing import NamedTuple

from sphere_pl.text.numbers import counted

EVERY = 100  # edits


class Look(NamedTuple):
    """What a look at the model has found.

    Attributes:
        edits: How many the model had by then.
        perplexity: On the opening of held-out prose.
    """

    edits: int
    perplexity: float


def is_due(before: int, after: int) -> bool:
    """Whether a batch completes a hundred edits, from how many there were before and after it.

    Example:
        >>> is_due(90, 100), is_due(100, 110), is_due(50, 350)
        (True, False, True)
    """
    return before // EVERY < after // EVERY


def alarm(unedited: float, last: Look, now: Look, limit: float, inherited: int = 0) -> str:
    """What there is to say of a look; nothing if all is well, or as it was.

    Args:
        unedited: Perplexity of the unedited model.
        last: The look before; that of the unedited model if there was none.
        now: This one.
        limit: Ratio of two perplexities from where on the later is an alarm.
        inherited: Edits of the run that this one continues, which `--data.limit` does not count.

    Example:
        >>> alarm(50.0, Look(600, 55.0), Look(700, 70.0), limit=2.0)
        ''
    """
    if math.isnan(last.perplexity):  # said before
        return ""
    since = f"{last.perplexity:.4g} after {last.edits:,}" if last.edits else f"{last.perplexity:.4g} before the first"
    seen = f"After {counted(now.edits, 'edit')} perplexity is {now.perplexity:.4g}, {since}"
    if not now.perplexity <= limit * last.perplexity:
        seen += ": some of the edits between have broken the model, and later ones build on that."
    elif last.perplexity <= limit * unedited < now.perplexity:
        seen += f", {unedited:.4g} unedited: the model wears out."
    else:
        return ""
    own = last.edits - inherited
    less = f"--data.limit {own} ends before them, smaller" if own > 0 else "Smaller"
    return f"{seen} {less} batches or a stronger regulariser may carry them."
