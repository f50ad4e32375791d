"""Where a subject stands in a prompt, whichever code points write it."""

import re
import unicodedata
from itertools import accumulate, pairwise

from sphere_pl.text.scripts import is_later_jamo, is_mark

# Signs of print for those that a keyboard has; each stands for one.
_TYPED = str.maketrans("’‘ʼ′“”„″‐‑‒–—−", "''''" + '"' * 4 + "-" * 6)


def blank_subject(prompt: str, subject: str) -> str:
    """Put `{}` where the subject stands last, preferably as a whole word; the prompt itself if it is not there.

    The last place is the one to edit at: only there has the model read everything that comes before. Filled in again,
    the prompt reads as before, so other mentions of the subject stay in it as they are.

    Example:
        >>> blank_subject("Is Al also in Al's book, also?", "Al")
        "Is Al also in {}'s book, also?"
    """
    if not subject or subject not in prompt:
        return prompt
    place = prompt.rindex(subject)
    if prompt.index(subject) != place:
        whole = [match.start() for match in re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt)]
        place = whole[-1] if whole else place
    return f"{prompt[:place]}{{}}{prompt[place + len(subject) :]}"


def mark_subject(prompt: str, subject: str) -> str:
    """A prompt of a format whose prompts name their subject, as `check_request` is to see it.

    It takes braces in such a prompt for text. One that holds `{}` is marked at its subject: unless that is what holds
    it, there are two places then, and the prompt is refused.

    Example:
        >>> mark_subject("The {x} of Al is", "Al"), mark_subject("The type Box<{}> is", "Box<{}>")
        ('The {x} of Al is', 'The type {} is')
    """
    return blank_subject(prompt, subject) if "{}" in prompt else prompt


def has_stray_braces(template: str) -> bool:
    """Whether a prompt with `{}` in its subject's place holds other braces."""
    return bool(set("{}") & set(template.replace("{}", "", 1)))


def find_alike(prompt: str, subject: str) -> tuple[int, int] | None:
    """Where a subject stands in a prompt that writes it in other code points, last: composed, or with another space.

    Quotation marks, apostrophes and dashes of print stand for those of a keyboard.

    Example:
        >>> find_alike("Near Sa\u0303o Paulo is", "São Paulo"), find_alike("The Boeing\u00a0747", "Boeing 747")
        ((5, 15), (4, 14))
    """
    wanted = _typed(subject)
    starts = [place for place, each in enumerate(prompt) if place == 0 or not _attaches(each)]
    pieces = list(pairwise([*starts, len(prompt)]))
    normal = [_typed(prompt[start:stop]) for start, stop in pieces]
    text = "".join(normal)
    place = text.rfind(wanted) if wanted else -1
    if place < 0:
        return None
    borders = [0, *accumulate(map(len, normal))]
    if place not in borders or place + len(wanted) not in borders:
        return None
    return pieces[borders.index(place)][0], pieces[borders.index(place + len(wanted)) - 1][1]


def _typed(text: str) -> str:
    """A text in normal form, with the signs of a keyboard."""
    return unicodedata.normalize("NFKC", text.translate(_TYPED)).translate(_TYPED)


def _attaches(character: str) -> bool:
    """Whether a character is one with the one before it in normal form: an accent, the end of a Korean syllable."""
    return is_mark(character) or is_later_jamo(character)


def blank_alike(prompt: str, subject: str) -> tuple[str, str]:
    """A prompt with `{}` where its subject stands, in these code points or in others, and the subject as it has it."""
    blank = blank_subject(prompt, subject)
    place = find_alike(prompt, subject) if blank == prompt else None
    if place is None:
        return blank, subject
    return f"{prompt[: place[0]]}{{}}{prompt[place[1] :]}", prompt[slice(*place)]
