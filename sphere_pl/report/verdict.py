"""How a run went, in words: on the screen and at the top of its report.

Everything is said from what results.json holds.
"""

from collections.abc import Mapping
from typing import Any

from sphere_pl.evaluation.metrics.table import is_share
from sphere_pl.text import numbers

_NAMED = 3  # failed edits that are named
_LONGEST = 40  # characters of what the model says

# What each cause means, for a reader who meets it in a table.
MEANINGS: Mapping[str, str] = {
    "skipped": "the update was refused, or would have broken the model",
    "shared key": "another fact of the batch has all but the same key",
    "attention sink": "the subject stands at the beginning of the text, where keys hardly depend on what stands there",
    "not converged": "not even the target value makes the model say it",
    "regularizer": "the target value says it, but the update does not reach it",
    "not learned": "the update did not suffice",
    "overwritten": "right after its batch, changed by a later one",
    "runs on": "the model says it and goes on into a longer word",
}


def verdict(results: Mapping[str, Any]) -> str:
    """How many facts hold, in one sentence; empty if that was not looked at.

    Example:
        >>> verdict({"edits": 4, "held": 3}), verdict({"edits": 1, "held": 1}), verdict({"edits": 4, "held": 0})
        ('3 of 4 facts hold', 'The fact holds', 'None of 4 facts holds')
        >>> verdict({"edits": 40, "held": 3, "scored": [2, 9, 40]})
        'All 3 facts hold that were asked, of 40'
    """
    asked, held = asked_facts(results), results.get("held")
    if held is None or not asked:
        return ""
    rest = "" if asked == results["edits"] else f" that were asked, of {results['edits']:,}"
    if asked == 1:
        return ("The fact holds" if held else "The fact does not hold") + rest.replace(" were", " was")
    if held in (0, asked):
        return (f"All {asked:,} facts hold" if held else f"None of {asked:,} facts holds") + rest
    return f"{held:,} of {asked:,} facts {'hold' if held > 1 else 'holds'}{rest}"


def asked_facts(results: Mapping[str, Any]) -> int:
    """How many facts were asked at the end: all, unless the results list some."""
    scored = results.get("scored")
    return results.get("edits") or 0 if scored is None else len(scored)


def closing_lines(results: Mapping[str, Any]) -> list[str]:
    """The last lines on the screen: how many facts hold, which failed and why, and what to turn."""
    first = verdict(results)
    if not first:
        return []
    noted = remarks(results)
    if results["held"] == asked_facts(results):
        return [f"✓ {first}.", *noted]
    moved = f", the weights moved by {share_moved(results)} of their norm" if not results["held"] else ""
    names = named(results)
    lines = [f"✗ {first}{moved}; failed: {names[0]}"]
    if len(names) > 1:
        lines = [f"✗ {first}{moved}; failed:", *(f"  {name}" for name in names)]
    if results.get("advice"):
        lines.append(f"What to turn: {'; '.join(results['advice'])}")
    return [*lines, *noted]


def remarks(results: Mapping[str, Any]) -> list[str]:
    """What a reader must know of facts that hold: how they have to be asked."""
    return [*_after_opening(results), *_in_chat(results)]


def _after_opening(results: Mapping[str, Any]) -> list[str]:
    """A sentence on facts that were edited and asked after an opening, if there are any."""
    count = results.get("at_sink") or 0
    if not count:
        return []
    who = "One fact has its subject" if count == 1 else f"{count:,} facts have their subject"
    return [
        f"{who} at the beginning, where this model has one key for all tokens: ask after other words, not at the start "
        "of a text."
    ]


def _in_chat(results: Mapping[str, Any]) -> list[str]:
    """A sentence where facts hold as they were edited, in plain text, and most of them not as a chat asks for them."""
    right = [bool(fact["chat_right"]) for fact in results.get("facts") or [] if "chat_right" in fact]
    share = sum(right) / len(right) if right else (results.get("after") or {}).get("chat/efficacy")
    if results.get("edited_as") != "plain" or share is None or 2 * share * asked_facts(results) >= results["held"]:
        return []
    how_many = numbers.percent(share, digits=0) if share else "none"
    return [
        f"Asked in the model's chat template {how_many} of them hold{'' if share else 's'}: they were edited as plain "
        "text. --data.chat both edits each fact in both forms."
    ]


def share_moved(results: Mapping[str, Any]) -> str:
    """How far the weights moved, in per cent."""
    moved = results.get("weights_moved")
    return numbers.change(float("nan") if moved is None else moved).removeprefix("+")


def named(results: Mapping[str, Any]) -> list[str]:
    """The first failed edits by name: what was wanted, what the model says, and why."""
    failed = results.get("failed") or []
    parts = [_failure(each) for each in failed[:_NAMED]]
    rest = asked_facts(results) - results["held"] - len(parts)
    return [*parts, f"and {rest:,} more"] if rest > 0 else parts


def _failure(each: Mapping[str, Any]) -> str:
    says = f'says "{_short(each["given"])}"' if each["given"].strip() else "says nothing"
    cause = f" ({each['cause']})" if each.get("cause") else ""
    return f'{_short(each["subject"] or each["prompt"])}: wanted "{_short(each["wanted"])}", {says}{cause}'


def _short(text: str) -> str:
    """Text on one line, cut where it would fill the screen."""
    line = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in " ".join(text.split()))
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST].rstrip()}…"


def summary(results: Mapping[str, Any]) -> str:
    """How a run went, in a sentence or two: edits, neighbours, other text."""
    first = verdict(results)
    if not first:
        return ""
    parts = [first, *_side_effects(results)]
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 2 else ", " if len(parts) > 1 else "") + parts[-1] + "."


def _side_effects(results: Mapping[str, Any]) -> list[str]:
    after, before = results.get("after") or {}, results.get("before") or {}
    said = []
    agreement, was, now = after.get("neighborhood_agreement"), before.get("perplexity"), after.get("perplexity")
    if agreement is not None and is_share("neighborhood_agreement"):
        made = (results.get("made_neighbors") or {}).get("records")
        changed = numbers.percent(1 - agreement, digits=0)
        kind = "neighbouring answers" + (" (made ones)" if made else "")
        said.append(f"no {kind} changed" if agreement == 1 else f"{changed} of {kind} changed")
    if was and now:
        change = now / was - 1
        text = f"other text is {'less' if change > 0 else 'more'} likely (perplexity {numbers.change(change, 0)})"
        said.append("other text is as likely as before" if abs(change) < 0.01 else text)
    return said
