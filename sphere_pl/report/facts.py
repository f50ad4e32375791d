"""The facts of a run one by one: those that were asked before and after, those that failed, and the case study."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from sphere_pl.report.html import Html, mark, section, table, text
from sphere_pl.report.reading import RunData, number
from sphere_pl.report.verdict import MEANINGS, remarks
from sphere_pl.text.numbers import percent

FAILED_SHOWN = 50
_NOTHING = '<i class="nothing">nothing</i>'
_KINDS = {"edit": "edit", "paraphrase": "other wording", "neighbor": "neighbour"}


def opening(run: RunData) -> list[Html]:
    """What stands first in a run of few facts: the facts, then which of them failed and why."""
    return [_facts(run), failures(run)] if run.results.get("facts") else []


def _facts(run: RunData) -> Html:
    facts = run.results["facts"]
    # The chat form has columns of its own where it was asked.
    chat = any("chat_after" in fact for fact in facts)
    head = ("", "asked", "wanted", "before", "after", *(("", "after, in chat") if chat else ()))
    asked = "What the model writes after each fact's own prompt, unedited and after all edits."
    caption = " ".join([asked, *remarks(run.results)])
    return section("The facts", caption, table(head, [_fact(fact, chat) for fact in facts], "text"))


def _fact(fact: Mapping[str, Any], chat: bool) -> list[Html]:
    cause = f"<small>{escape(str(fact['cause']))}</small>" if fact.get("cause") else ""
    cells = [mark(bool(fact.get("right"))), text(fact["prompt"]), text(fact["wanted"])]
    cells += [written(fact["before"]), f"<div>{written(fact['after'])}{cause}</div>"]
    if chat:
        cells += [mark(bool(fact.get("chat_right"))), written(fact.get("chat_after", ""))]
    return cells


def written(answer: str) -> Html:
    """What a model wrote; nothing at all is said in words."""
    return text(answer) if answer.strip() else _NOTHING


def failures(run: RunData) -> Html:
    """Edits that failed, with the cause and what to turn; nothing if none did."""
    failed = run.results.get("failed") or []
    if not failed:
        return ""
    keys = [key for key in ("subject", "prompt", "wanted", "given", "cause") if any(key in edit for edit in failed)]
    numbers = [key for key in _PROBABILITIES if any(edit.get(key) is not None for edit in failed)]
    count = max(len(failed), sum((run.results.get("causes") or {}).values()))
    shown = f"the first {FAILED_SHOWN} of {count:,}" if count > FAILED_SHOWN else "all of them"
    caption = f"Edits whose prompt does not give the wanted answer at the end of the run, {shown}."
    rows = [
        [*(_cell(edit, key) for key in keys), *(percent(number(edit.get(key))) for key in numbers)]
        for edit in failed[:FAILED_SHOWN]
    ]
    head = [*keys, *(_PROBABILITIES[key] for key in numbers)]
    return section("Failed edits", caption, table(head, rows, "text"), _explained(run))


# Probability of the wanted answer, with the target value and on the edited model right after its batch.
_PROBABILITIES = {"probability": "probability, target value", "edited_probability": "probability, edited model"}


def _cell(row: Mapping[str, Any], key: str) -> Html:
    value = str(row.get(key, ""))
    return written(value) if key == "given" else text(value)


def _explained(run: RunData) -> Html:
    """What the causes mean, and what to turn."""
    causes = [f"<b>{escape(name)}</b>: {escape(MEANINGS.get(name, ''))}" for name in run.results.get("causes") or {}]
    advice = [escape(each) for each in run.results.get("advice") or []]
    lines = [*causes, *([f"What to turn: {'; '.join(advice)}"] if advice else [])]
    return f'<p class="caption notes">{"<br>".join(lines)}</p>' if lines else ""


def cases(run: RunData) -> Html:
    """The case study: prompts of a few records, with what the model wrote before and after."""
    found = run.results.get("cases") or []
    if run.results.get("facts"):  # edits stand there already
        found = [case for case in found if case.get("kind", "edit") != "edit"]
    if not found:
        return ""
    if not all("kind" in case for case in found):  # a run of an earlier version
        return section("Case study", _CASES, _texts(("prompt", "before", "after", "wanted"), found))
    rows = [
        [
            mark(bool(case["right"])),
            escape(_KINDS[case["kind"]]),
            *(text(case["prompt"]), written(case["before"]), written(case["after"])),
            text(case["wanted"]) if case["wanted"] else '<i class="nothing">as before</i>',
        ]
        for case in found
    ]
    return section("Case study", _CASES, table(("", "kind", "prompt", "before", "after", "wanted"), rows, "text"))


_CASES = "What the model writes after some prompts, unedited and after all edits."


def _texts(keys: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Html:
    return table(keys, [[text(str(row.get(key, ""))) for key in keys] for row in rows], "text")
