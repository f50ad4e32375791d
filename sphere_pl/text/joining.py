"""How an answer follows a prompt: the one place that decides what stands between them."""

import re
import unicodedata

from sphere_pl.text.scripts import is_mark, is_spaceless

_ATTACHED = "\u200b\u200c\u200d\u2060\u0640"  # what they end is not finished: no space follows
_QUOTES = "‚„‹«“‘”’›»\"'`"  # which of them open and which close is another matter in every language
_PARTNER = {"»": "«", "›": "‹", "”": "“", "’": "‘", "“": "„"}  # what a mark closes, if that has been opened
# A special token at the end of a chat prompt, or a tag: `<|assistant|>`, `<start_of_turn>`, `</think>`, `[/INST]`.
_TAG_AT_END = re.compile(r"<[^<>\s]+>$|\[/?[A-Z_]+\]$")
_TAG_AT_START = re.compile(r"\s*(<[|｜][^<>\s]+[|｜]>|</?[A-Za-z_]+>|\[[A-Z_]+\])")
# The name of who speaks next in a chat template, without the newline that ends it: `<|im_start|>assistant`.
_ROLE_AT_END = re.compile(r"<[^<>\s]*[|｜_][^<>\s]*>(?:assistant|model|bot|chatbot|ai|gpt|user|human)\Z", re.IGNORECASE)
# Words of one letter that Hebrew and Arabic write to the next one, and Arabic's article.
_PROCLITIC = re.compile(r"(?<!\w)(?:[בהוכלמש]|[بفكلو]|و?ال)\Z")
# An article or a preposition that has lost its vowel: l'Italie, dell'arte, O'Brien.
_ELISION = re.compile(
    r"(?<!\w)(?:[cdjlmnst]|qu|jusqu|lorsqu|puisqu|quoiqu|presqu|dell|nell|all|dall|sull|un|quest|quell|o)['’]$",
    re.IGNORECASE,
)
# What begins an answer and stands directly after what it follows.
_CLOSING_START = re.compile(r"[,;:!?)\]}%]|\.(?!\w)|['’](?:s|t|re|ve|ll|d|m)\b")
_LATIN_PER_CHARACTER = 1.5  # characters of a script without spaces that say as much as a word


def joined(prompt: str, target: str, joiner: str | None = None) -> str:
    r"""A prompt with the answer after it.

    Args:
        prompt: What is asked.
        target: What is to follow, without space around it.
        joiner: What stands between them, if the record says so.

    Example:
        >>> joined("The capital of France is", "Paris"), joined("法国的首都是", "巴黎"), joined("Answer:\n", "Paris")
        ('The capital of France is Paris', '法国的首都是巴黎', 'Answer:\nParis')
        >>> joined("法国的首都是", "巴黎", " "), joined('He said "', "yes"), joined("<|assistant|>", "Yes")
        ('法国的首都是 巴黎', 'He said "yes', '<|assistant|>Yes')
    """
    if not target:
        return prompt
    return f"{prompt}{separator(prompt, target) if joiner is None else joiner}{target}"


def separator(prompt: str, target: str) -> str:
    """What stands between a prompt and its answer: a space, nothing, or the newline of a chat template.

    Nothing follows white space, an opening quotation mark or bracket, a special token, a hyphen or an apostrophe that
    the next word is written to; nothing stands between characters of scripts without spaces, nor before closing
    punctuation. After the name of a role, as in `<|im_start|>assistant`, comes the newline that templates have there.
    """
    if target and _ROLE_AT_END.search(prompt):
        return "\n"
    attached = not prompt or not target or _ends_open(prompt) or _begins_attached(target)
    return "" if attached or _spaceless_border(prompt, target) or _is_amount(prompt, target) else " "


def asked(prompt: str, joiner: str | None = None) -> str:
    r"""A prompt as it is put to the model: as it is written, but for one space that the answer brings along.

    Models write that space with the word after it. All other white space at the end belongs to the prompt.

    Example:
        >>> asked("The capital is "), asked("Answer:\n"), asked("答案： ")
        ('The capital is', 'Answer:\n', '答案： ')
    """
    if joiner is not None or not prompt.endswith(" "):
        return prompt
    without = prompt[:-1]
    return prompt if _ends_open(without) or is_spaceless(_last_letter(without)) else without


def opens_with_template(text: str) -> bool:
    r"""Whether a text begins with the special token of a chat template, in front of which nothing belongs.

    Example:
        >>> opens_with_template("<|im_start|>user\nHi"), opens_with_template("The capital")
        (True, False)
    """
    return _TAG_AT_START.match(text) is not None


def _ends_open(prompt: str) -> bool:
    """Whether what ends a prompt is written directly to what follows."""
    if not prompt or prompt[-1].isspace() or prompt[-1] in _ATTACHED:
        return True
    last, before = prompt[-1], prompt[-2:-1]
    if last in _QUOTES:
        return _opens(prompt) or _ELISION.search(prompt) is not None
    if _PROCLITIC.search(prompt):
        return True
    kind, alone = unicodedata.category(last), not before or before.isspace()
    if last in "@#~":
        return alone
    if kind == "Pd" or last in "=&":
        return not alone
    return kind in ("Ps", "Pi") or last in "/\\_" or _TAG_AT_END.search(prompt) is not None


def _opens(prompt: str) -> bool:
    """Whether the quotation mark at the end of a prompt opens a quotation: what stands before it tells."""
    text, mark = prompt[:-1], prompt[-1]
    before = text[-1:]
    if mark in _PARTNER and text.count(_PARTNER[mark]) > text.count(mark):
        return False
    if mark == '"' and before.isspace():
        return text.count(mark) % 2 == 0
    return not before or before.isspace() or before in _QUOTES or unicodedata.category(before) in ("Ps", "Pd")


def _begins_attached(target: str) -> bool:
    first = target[0]
    if is_mark(first) or first in _ATTACHED:
        return True
    if unicodedata.category(first) in ("Pe", "Po", "Pf", "Pd") and is_spaceless(first):
        return True
    return _CLOSING_START.match(target) is not None


def _spaceless_border(prompt: str, target: str) -> bool:
    """Whether a prompt and its answer meet in a script without spaces."""
    before, after = _last_letter(prompt), next((each for each in target if each.isalnum()), target[0])
    if is_spaceless(prompt[-1]) and unicodedata.category(prompt[-1])[0] == "P":
        return True
    if is_spaceless(before):
        return is_spaceless(after) or _mostly_spaceless(prompt)
    return is_spaceless(after) and _mostly_spaceless(prompt)


def _last_letter(prompt: str) -> str:
    """The last letter or digit of a text, else a blank."""
    return next((each for each in reversed(prompt) if each.isalnum()), " ")


def _mostly_spaceless(text: str) -> bool:
    """Whether a text of several scripts is one of a script without spaces: it may begin with a Latin name."""
    characters = sum(map(is_spaceless, text))
    others = re.findall(r"[^\W\d_]+", "".join(" " if is_spaceless(each) else each for each in text))
    return characters > 0 and characters / _LATIN_PER_CHARACTER >= len(others)


def _is_amount(prompt: str, target: str) -> bool:
    """Whether a sign of a currency, or a sign, is followed by its number."""
    return target[0].isdigit() and (unicodedata.category(prompt[-1]) == "Sc" or prompt[-2:] in ("+", " +", "-", " -"))
