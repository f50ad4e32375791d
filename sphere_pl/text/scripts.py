"""Characters by how their script is written: with spaces between words, or without."""

import re
import unicodedata
from collections.abc import Iterator

# Beginnings of the Unicode names of scripts without spaces between words.
_SPACELESS = (
    "CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO", "IDEOGRAPHIC", "HANGZHOU", "KANGXI", "YI ",
    "THAI", "LAO ", "KHMER", "MYANMAR", "TIBETAN", "JAVANESE", "BALINESE", "TAI ", "NEW TAI LUE", "TANGUT", "NUSHU",
    "KHITAN",
)  # fmt: skip
_JOINERS = "\u200c\u200d"  # part of a word, in Persian and in Indian scripts
# Vowel points and the stretched line of Arabic and Hebrew, which may be written or not.
_OPTIONAL = re.compile("[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u0652\u0670]")


def is_spaceless(character: str) -> bool:
    """Whether a character is written without spaces around: Han, Kana, Thai, Lao, Khmer, Myanmar and others.

    Wide punctuation belongs to such scripts too.

    Example:
        >>> [is_spaceless(each) for each in "国カไa파अ、🍕"]
        [True, True, True, False, False, False, True, False]
    """
    if character < "\u0e00":
        return False
    if unicodedata.category(character)[0] == "P" and unicodedata.east_asian_width(character) in "WF":
        return True
    return unicodedata.name(character, "").startswith(_SPACELESS)


def is_mark(character: str) -> bool:
    """Whether a character is written onto the one before it: an accent, a vowel sign."""
    return unicodedata.category(character)[0] == "M"


def is_later_jamo(character: str) -> bool:
    """Whether a character is a vowel or an end of a Korean syllable that is written in its parts."""
    return "\u1160" <= character <= "\u11ff"


def words(text: str) -> list[str]:
    """The words of a text, compared without case, width and optional signs; without spaces, every character is one.

    Example:
        >>> words("The United-Kingdom!"), words("柏林(Berlin)1999年"), words("दिल्ली में")
        (['the', 'united', 'kingdom'], ['柏', '林', 'berlin', '1999', '年'], ['दिल्ली', 'में'])
    """
    return [each for each in split_words(folded(text)) if each[0].isalnum() or each[0] == "_"]


def folded(text: str) -> str:
    r"""A text without differences of case, width and optional signs, in which texts are compared.

    Example:
        >>> folded("Ｒome"), folded("Rome\u200b")
        ('rome', 'rome')
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    if plain.isascii():
        return plain
    return "".join(each for each in _OPTIONAL.sub("", plain) if each in _JOINERS or unicodedata.category(each) != "Cf")


def split_words(text: str) -> list[str]:
    """The words and punctuation marks of a text; in scripts without spaces, its characters with what is on them.

    Example:
        >>> split_words("So it is."), split_words("在柏林。")
        (['So', 'it', 'is', '.'], ['在', '柏', '林', '。'])
    """
    return re.findall(r"\w+|[^\w\s]", text) if text.isascii() else list(_split(text))


def _split(text: str) -> Iterator[str]:
    word = ""
    for character in text:
        attached = word and (unicodedata.category(character)[0] == "M" or character in _JOINERS)
        if attached or (
            _is_letter(character) and _is_letter(word[:1]) and not (is_spaceless(character) or is_spaceless(word[0]))
        ):
            word += character
            continue
        if word:
            yield word
        word = "" if character.isspace() else character
    if word:
        yield word


def _is_letter(character: str) -> bool:
    return character.isalnum() or character == "_"
