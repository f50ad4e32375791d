"""`python -m sphere_pl log RUN_DIR`: what was edited when, by which run, with which result, and what was taken back."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sphere_pl.commands.arguments import run_folder
from sphere_pl.commands.parsers import Parser
from sphere_pl.errors import UserError
from sphere_pl.history.entries import Ancestor, Entry
from sphere_pl.history.saved import SavedRun
from sphere_pl.process.console import say
from sphere_pl.text.numbers import counted

_WIDTH = 100  # of a table that goes into a file, which has no width of its own
_WORDS = frozenset({"holds", "fails", "skipped", "taken back", "-"})  # what is no answer of the model


def main(args: Sequence[str]) -> None:
    """List the edits of a run and of those that it continues.

    Raises:
        UserError: If it is no run folder.
    """
    given = _parser().parse_args(args)
    run = SavedRun.open(named_run(given))
    rows = list(edits_of(run))
    if given.json:
        sys.stdout.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        console = Console()
        show(run, rows, console if console.is_terminal else Console(width=max(_WIDTH, console.width)))


def _parser() -> Parser:
    parser = Parser("log", description="List what was edited when, by which run, and what was taken back.")
    add_named_run(parser)
    parser.add_argument("--json", action="store_true", help="write a line of JSON for each edit")
    return parser


def add_named_run(parser: argparse.ArgumentParser) -> None:
    """Add a run folder that stands alone or after `--run_dir`."""
    parser.add_argument("run", nargs="?", help="folder of the run")
    parser.add_argument("--run_dir", help="the same")


def named_run(given: argparse.Namespace) -> Path:
    """The run folder that was named.

    Raises:
        UserError: If none was, or two, or it is no folder.
    """
    if (given.run is None) == (given.run_dir is None):
        raise UserError("Name one run folder, such as runs/mine.")
    given.run_dir = given.run_dir or given.run
    return run_folder(given)


def edits_of(run: SavedRun) -> Iterator[dict[str, Any]]:
    """Every edit as plain values, in the order of the stream; then those that were taken back.

    `result` is that of the run's end: `holds`, what the model writes instead, `fails` where that was not looked at,
    `skipped` if a guard refused the batch, or None for an edit that was not asked then.
    """
    result_of = Outcomes(run.results)
    ancestors, number = run.history.header.ancestors, 0
    for entry in run.history.stream(len(run.history.entries)):
        for request in entry.edit_requests():
            number += 1
            yield {
                "state": "edited",
                "case_id": request.case_id,
                "subject": request.subject,
                "prompt": request.question,
                "target": request.target_new,
                "batch": entry.number,
                "time": entry.time,
                "run": _run_of(entry, ancestors, str(run.folder)),
                "result": result_of(number, request.case_id),
            }
    yield from map(_taken_back, run.history.header.removed)


def _taken_back(removed: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "state": "taken back",
        "case_id": removed["case_id"],
        "subject": removed["subject"],
        "prompt": removed["prompt"].replace("{}", removed["subject"], 1),
        "target": removed["target_new"],
        "batch": None,
        "time": removed.get("at", ""),
        "run": removed.get("from", ""),
        "result": None,
    }


class Outcomes:
    """Says what became of each edit, from the results of a run.

    Args:
        results: What results.json holds; empty if there is none.
    """

    def __init__(self, results: Mapping[str, Any]) -> None:
        self._given: dict[int, str] = {
            each["edit"]: each["given"] for each in results.get("failed") or () if "edit" in each
        }
        self._skipped = {case for each in results.get("skipped") or () for case in each.get("cases", ())}
        self._again = frozenset(results.get("edited_again") or ())
        self._failed = frozenset(results.get("failed_edits") or ())
        scored = results.get("scored") if results else ()
        self._scored = None if scored is None else frozenset(scored)

    def __call__(self, number: int, case_id: str) -> str | None:
        """What became of the edit of that number in the stream, from 1."""
        if case_id in self._skipped and number not in self._again:
            return "skipped"
        if self._scored is not None and number not in self._scored:
            return None
        return self._given.get(number, "fails" if number in self._failed else "holds")


def _run_of(entry: Entry, ancestors: Sequence[Ancestor], own: str) -> str:
    return next((each.run_dir for each in ancestors if entry.number <= each.entries), own)


def _minute(time: str) -> str:
    """A time of the log, to the minute; nothing where none was kept.

    Example:
        >>> _minute("2026-11-30T02:44:43+01:00")
        '2026-11-30 01:44'
    """
    return time and f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%d %H:%M}"


def show(run: SavedRun, rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print the runs and the edits."""
    header = run.history.header
    say(f"{header.model} ({header.dtype}), layers {header.layers}, {header.method}", console)
    own = Ancestor(str(run.folder), len(run.history.entries), run.history.edits, scores=run.results.get("after") or {})
    for each in (*header.ancestors, own):
        efficacy = each.scores.get("efficacy")
        scored = "no results" if efficacy is None else f"efficacy {efficacy:.3f}"
        say(f"{each.run_dir}: {counted(each.edits, 'edit')} so far, {scored}", console)
    table = Table()
    for column in ("case", "when (UTC)", "run", "prompt", "answer", "result"):
        table.add_column(column, overflow="fold")
    for row in rows:
        result = "taken back" if row["state"] == "taken back" else row["result"] or "-"
        shown = result if result in _WORDS else f"says {result.strip()}"
        cells = (row["case_id"], _minute(row["time"]), Path(row["run"]).name, row["prompt"], row["target"], shown)
        table.add_row(*map(Text, cells))
    console.print(table)
