"""What `sphere_pl.edit` says of its edits."""

import html
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rich.console import Console

from sphere_pl.api.fit import GivenFit
from sphere_pl.api.session import Session, stored_sums
from sphere_pl.api.settings import Asked
from sphere_pl.data.request import shorten
from sphere_pl.report.verdict import remarks
from sphere_pl.run.results import show_table
from sphere_pl.text.numbers import counted

_WIDTH = 120


class FactResult(NamedTuple):
    """What became of one fact.

    Attributes:
        prompt: The question, with the subject in it.
        subject: What the fact is about.
        target: What the model shall say.
        learned: Whether every token of the target is the likeliest one; None if that was not measured.
        given: What the model writes instead, if it says something else; only of the first 50 that it does.
    """

    prompt: str
    subject: str
    target: str
    learned: bool | None
    given: str = ""


@dataclass(frozen=True)
class EditReport:
    """Scores before and after, and what became of each fact; printed, it is a table.

    Attributes:
        results: What results.json says of a run.
        facts: What became of each fact, in their order; after several calls, those of all of them.
        session: The model and what `edit(report, more_facts)` needs beside it; it stays in memory with the report.
    """

    results: dict[str, Any]
    facts: tuple[FactResult, ...]
    session: Session | None = field(default=None, repr=False, compare=False)

    @property
    def before(self) -> dict[str, float]:
        """Scores of the unedited model, by name."""
        return dict(self.results["before"])

    @property
    def after(self) -> dict[str, float]:
        """Scores of the edited model, by name."""
        return dict(self.results["after"])

    @property
    def failed(self) -> tuple[FactResult, ...]:
        """Facts that the model neither finds likeliest nor writes freely; as far as the latter was looked at."""
        return tuple(fact for fact in self.facts if fact.given)

    def __str__(self) -> str:
        """The table of before and after, a line for each failed fact, and how facts that hold have to be asked."""
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace", newline="\n")
        console = Console(file=stream, width=_WIDTH, force_terminal=False, force_jupyter=False, no_color=True)
        show_table(self.results, console)
        stream.write("\n".join(self._lines()))
        stream.flush()
        return stream.buffer.getvalue().decode(encoding).rstrip()

    def _lines(self) -> Iterator[str]:
        for fact in self.failed:
            wanted, given = shorten(fact.target), shorten(fact.given)
            yield f"failed: {shorten(fact.prompt)} -> {wanted}, but the model writes {given}"
        yield from remarks(self.results)

    def __repr__(self) -> str:
        return (
            f"<EditReport: {counted(self.results['edits'], 'edit')}, {len(self.failed)} failed; print it for the table>"
        )

    def _repr_html_(self) -> str:
        """The same in a notebook."""
        return f"<pre>{html.escape(str(self))}</pre>"


def report_of(cli: GivenFit, asked: Asked) -> EditReport:
    """What is known when a run has ended."""
    editor, evaluator = cli.model, cli.model.evaluator
    given = {each["edit"] - 1: each["given"] for each in cli.results["failed"]}
    scored = set(evaluator.scorable(editor.edits_seen)) if evaluator.last else ()
    facts = [
        FactResult(
            each.question,
            each.subject,
            each.target_new,
            place not in evaluator.missed if place in scored else None,
            given.get(place, ""),
        )
        for place, each in enumerate(editor.requests[: editor.edits_seen])
    ]
    return EditReport(cli.results, tuple(facts), _session(cli, asked))


def _session(cli: GivenFit, asked: Asked) -> Session:
    editor, kept = cli.model, cli.in_memory
    lm = editor.language_model
    sums = stored_sums(lm.model, kept.unedited)
    requests = editor.requests[: editor.edits_seen]
    return Session(
        lm.model, lm.tokenizer, asked, kept.unedited, sums, kept.weights, kept.kept, requests, cli.model.name
    )
