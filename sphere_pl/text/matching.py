"""Whether a text says an answer: by its words, and by the signs without which it would be another one."""

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from sphere_pl.text.scripts import folded, split_words

_ARTICLES = {"a", "an", "the"}
_TAG = re.compile(r"<[|｜][^<>\s]+[|｜]>|</?s>")  # special tokens, which nobody reads in an answer
# Minus and hyphen are signs where they stand in front of a number, or alone between spaces; elsewhere they join words.
_MINUS = re.compile(r"(?<!\w)[-−](?=[.,]?\d)|(?<=\s)[-−*/](?=\s)")
_MORE_DIGITS = re.compile(r"[.,]\d|[十百千万萬亿億兆]")
# What Korean writes to a name's end where English has a word: a form of "to be", or a particle. Left out are those that
# may make another name of it: 독일 is Germany, 독일인 a German.
_ENDING = re.compile(
    r"이다|입니다|이?에요|예요|이?었다|였다|이?었습니다|였습니다|이?었으며|였으며|이며|이고|이지만|지만|이라는|라는|이라고|"
    r"라고|이자|에서|에는|에서는|에게|으로|으로서|까지|부터"
)
_SHORT_ENDING = re.compile(r"[다며고임은는을를의에와과로]")  # behind a name of one syllable they may be part of another
_WORDLESS = "|~^`"  # of the mathematical signs, those that markup is made of


class _Word(NamedTuple):
    text: str
    start: int
    end: int


def answer_words(text: str) -> list[str]:
    """The words of an answer without case, punctuation and articles; articles alone stay.

    Example:
        >>> answer_words("The United-Kingdom, of course!")
        ['united', 'kingdom', 'of', 'course']
    """
    return [word.text for word in _without_articles(_words(folded(text)))]


def begins_with(text: str, answers: Sequence[str]) -> bool:
    """Whether a text begins with one of the answers, word by word, articles counted or not.

    A text that comes to the answer later does not count, nor one that begins with a longer word or number, or with the
    words and other signs: of a currency, of arithmetic, `#`, `%`. In scripts without spaces every character is a word.
    In Korean a particle or a form of "to be" may be written to the last word.

    Example:
        >>> begins_with("the UK. It lies", ["United Kingdom", "UK"]), begins_with("Romeo", ["Rome"])
        (True, False)
        >>> begins_with("柏林。它", ["柏林"]), begins_with("1911年", ["1911"]), begins_with("दल्ला", ["दिल्ली"])
        (True, True, False)
        >>> begins_with("-5 degrees", ["5"]), begins_with("42.7", ["42"]), begins_with("C, not C++", ["C++"])
        (False, False, False)
    """
    return any(_begins_with(text.strip(), _TAG.sub("", answer).strip()) for answer in answers)


def same_answer(one: str, other: str) -> bool:
    """Whether two answers say the same, but for case and punctuation.

    Example:
        >>> same_answer("paris", "Paris."), same_answer("-5", "5"), same_answer("🍕", "🍔")
        (True, False, False)
    """
    texts = [folded(one).strip(), folded(other).strip()]
    first, second = ([word.text for word in _words(text)] for text in texts)
    if not first and not second:
        return texts[0] == texts[1]
    return first == second and _signs(texts[0]) == _signs(texts[1])


def _begins_with(text: str, answer: str) -> bool:
    written, wanted = folded(text), folded(answer)
    if not _words(wanted):  # signs, no words
        return bool(answer) and text.startswith(answer)
    signs = _signs(wanted)
    for kept in (list, _without_articles):
        found, expected = kept(_words(written)), kept(_words(wanted))
        first = found[: len(expected)]
        same = [word.text for word in first[:-1]] == [word.text for word in expected[:-1]]
        if same and len(first) == len(expected) and _says(first[-1].text, expected[-1].text):
            return _signs(_around(written, first[0].start, first[-1].end)) == signs and not (
                written[first[-1].end - 1].isdigit() and _MORE_DIGITS.match(written[first[-1].end :])
            )
    return False


def _says(word: str, wanted: str) -> bool:
    """Whether a word is the wanted one, in Korean with what is written to its end."""
    ending = word.removeprefix(wanted)
    if word == wanted or not word.startswith(wanted):
        return word == wanted
    if wanted[-1].isdigit() and ending[0] in "년월일":
        ending = ending[1:]
    short = len(wanted) > 1 and _SHORT_ENDING.fullmatch(ending)
    return not ending or bool(short or _ENDING.fullmatch(ending))


def _words(text: str) -> list[_Word]:
    """The words of a folded text and where they stand in it."""
    found, place = [], 0
    for piece in split_words(text):
        place = text.index(piece, place)
        if piece[0].isalnum() or piece[0] == "_":
            found.append(_Word(piece, place, place + len(piece)))
        place += len(piece)
    return found


def _without_articles(words: list[_Word]) -> list[_Word]:
    return [word for word in words if word.text not in _ARTICLES] or words


def _around(text: str, start: int, end: int) -> str:
    """A piece of a text with the signs that are written directly to it."""
    while start and (_is_sign(text[start - 1]) or text[start - 1] in "-−"):
        start -= 1
    while end < len(text) and _is_sign(text[end]) and text[end] not in "<=>":
        end += 1
    return text[start:end]


def _signs(text: str) -> list[str]:
    """The signs that make a text another one, in their order."""
    minus = {found.start() for found in _MINUS.finditer(text)}
    return [each for place, each in enumerate(text) if place in minus or _is_sign(each)]


def _is_sign(character: str) -> bool:
    if character.isascii() and character.isalnum():
        return False
    return character in "#%" or (unicodedata.category(character) in ("Sm", "Sc") and character not in _WORDLESS)
