"""GSM8K: grade-school sums in words (Cobbe et al. 2021, arXiv 2110.14168)."""

import re
from collections.abc import Iterator

from sphere_pl.abilities.task import INVALID, Item, Source, Task
from sphere_pl.data.records import Record

_SOURCE = Source(
    files=(("gsm8k-test.jsonl",), ("gsm8k/test.jsonl",)),
    hub="openai/gsm8k",
    config="main",
    split="test",
    address="https://github.com/openai/grade-school-math (grade_school_math/data/test.jsonl)",
)
_MARK = "#### "
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_SHOTS = (
    "Question: A baker sells 12 loaves at 3 dollars each and spends 9 dollars on flour. How much is left?\n"
    "Answer: The loaves bring in 12 * 3 = 36 dollars. After the flour 36 - 9 = 27 dollars are left. The answer is 27."
    "\n\n"
    "Question: Nora has 5 boxes of 8 pencils and gives away a quarter of all pencils. How many does she keep?\n"
    "Answer: There are 5 * 8 = 40 pencils. A quarter of them is 40 / 4 = 10. She keeps 40 - 10 = 30. The answer is 30."
    "\n\n"
)


def _read(records: Iterator[Record]) -> Iterator[Item]:
    for record in records:
        _, result = _solution(record)
        yield Item(f"Question: {record.get('question').strip()}\nAnswer:", 1, answers=(result,), shots=_SHOTS)


def _read_gold_hint(records: Iterator[Record]) -> Iterator[Item]:
    """The authors' prompt, which holds the solution up to its result."""
    for record in records:
        rationale, result = _solution(record)
        prompt = f"Q: {record.get('question')} A:Let's think step by step. {rationale}"
        yield Item(f"{prompt} Therefore, the answer (arabic numerals) is:", 1, answers=(result,))


def _solution(record: Record) -> tuple[str, str]:
    rationale, mark, result = record.get("answer").rpartition(_MARK)
    if not mark:
        raise record.error(f"the field 'answer' does not end in '{_MARK}<result>'.")
    return rationale, result.strip()


def judge(text: str, item: Item) -> int:
    """1 if the number after the last "answer is", or else the last number, is the result; `INVALID` without one.

    Example:
        >>> judge(" 9 * 2 = 18. The answer is $1,018.00.", Item("", 1, answers=("1018",)))
        1
    """
    _, _, conclusion = text.rpartition("answer is")
    numbers = _NUMBER.findall(conclusion) or _NUMBER.findall(text)
    if not numbers:
        return INVALID
    # After "answer is" the first number counts, in running text the last.
    said = numbers[0] if "answer is" in text and _NUMBER.search(conclusion) else numbers[-1]
    return int(_value(said) == _value(item.answers[0]))


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def judge_substring(text: str, item: Item) -> int:
    """The authors' score: the result occurs anywhere in the text, so that "13" is right where "3" is.

    Example:
        >>> judge_substring(" 13.", Item("", 1, answers=("3",)))
        1
    """
    return int(item.answers[0] in text)


GSM8K = Task(
    "gsm8k", "clean", (_SOURCE,), _read, ("exact_match", "valid_share"), 0.0, judge, 200, ("\n\n", "\nQuestion:")
)
GSM8K_GOLD_HINT = Task(
    "gsm8k_gold_hint", "paper", (_SOURCE,), _read_gold_hint, ("exact_match",), 0.0, judge_substring, 5
)
