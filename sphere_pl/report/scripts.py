"""In which language a text may be, judged by its script: what a browser chooses its letters' shapes by."""

import unicodedata

# By the first word of a letter's Unicode name. Han letters alone may be Chinese; kana beside them make it Japanese.
_LANGUAGES = {
    "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "CJK": "zh", "ARABIC": "ar", "HEBREW": "he", "DEVANAGARI": "hi",
    "BENGALI": "bn", "TAMIL": "ta", "TELUGU": "te", "THAI": "th", "LAO": "lo", "KHMER": "km", "MYANMAR": "my",
    "GEORGIAN": "ka", "ARMENIAN": "hy", "ETHIOPIC": "am", "GREEK": "el", "CYRILLIC": "ru",
}  # fmt: skip


def language(text: str) -> str:
    """A language that is written in a text's script; empty for Latin letters and scripts that are not known.

    Example:
        >>> language("東京は首都です"), language("东京是首都"), language("Paris")
        ('ja', 'zh', '')
    """
    found = [_LANGUAGES.get(unicodedata.name(each, "").split(" ")[0], "") for each in text if ord(each) > 0x24F]
    for certain in ("ja", "ko"):
        if certain in found:
            return certain
    return next(filter(None, found), "")
