"""`python -m sphere_pl log RUN_DIR`: what was edited when, by which run, with which result, and what was taken back."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sphere_pl.commands.arguments import run_folder
from sphere_pl.commands.parsers import Parser
from sphere_pl.errors import UserError
from sphere_pl.history.log import Ancestor, Entry
from sphere_pl.history.saved import SavedRun
from sphere_pl.process.console import say

_WIDTH = 100


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
        show(run, rows, Console(width=max(_WIDTH, console.width)))


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

    `result` is that of the run's end: `holds`, what the model writes instead, `skipped` if a guard refused the batch,
    or None for a run that has no results.
    """
    results, header = run.results, run.history.header
    given = {(each["prompt"], each["wanted"]): each["given"] for each in results.get("failed") or ()}
    skipped = {case for each in results.get("skipped") or () for case in each.get("cases", ())}
    for entry in run.history.entries:
        for request in entry.edit_requests():
            said = given.get((request.question, request.target_new), "holds" if results else None)
            yield {
                "state": "edited",
                "case_id": request.case_id,
                "subject": request.subject,
                "prompt": request.question,
                "target": request.target_new,
                "batch": entry.number,
                "time": entry.time,
                "run": _run_of(entry, header.ancestors, str(run.folder)),
                "result": "skipped" if request.case_id in skipped else said,
            }
    for each in header.removed:
        yield {
            "state": "taken back",
            "case_id": each["case_id"],
            "subject": each["subject"],
            "prompt": each["prompt"].replace("{}", each["subject"], 1),
            "target": each["target_new"],
            "batch": None,
            "time": each.get("at", ""),
            "run": each.get("from", ""),
            "result": None,
        }


def _run_of(entry: Entry, ancestors: Sequence[Ancestor], own: str) -> str:
    return next((each.run_dir for each in ancestors if entry.number <= each.entries), own)


def show(run: SavedRun, rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print the runs and the edits."""
    header = run.history.header
    say(f"{header.model} ({header.dtype}), layers {header.layers}, {header.method}", console)
    own = Ancestor(str(run.folder), len(run.history.entries), run.history.edits, scores=run.results.get("after") or {})
    for each in (*header.ancestors, own):
        efficacy = each.scores.get("efficacy")
        scored = "no results" if efficacy is None else f"efficacy {efficacy:.3f}"
        say(f"{each.run_dir}: {each.edits:,} edits so far, {scored}", console)
    table = Table()
    for column in ("case", "when", "run", "prompt", "answer", "result"):
        table.add_column(column, overflow="fold")
    for row in rows:
        result = "taken back" if row["state"] == "taken back" else row["result"] or "-"
        shown = result if result in {"holds", "skipped", "taken back", "-"} else f"says {result.strip()}"
        cells = (row["case_id"], row["time"], Path(row["run"]).name, row["prompt"], row["target"], shown)
        table.add_row(*map(Text, cells))
    console.print(table)
