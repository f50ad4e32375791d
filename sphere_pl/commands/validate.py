"""`python -m sphere_pl validate --run_dir R` (or `test`): score a saved run, on its own edits or on others."""

import argparse
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sphere_pl.commands.parsers import Parser, SettingsParser
from sphere_pl.commands.which_run import State, add_state_arguments, load_state
from sphere_pl.commands.wording import options
from sphere_pl.data.datamodule import EditDataModule
from sphere_pl.data.request import EditRequest
from sphere_pl.errors import UserError
from sphere_pl.evaluation.evaluator import Evaluator
from sphere_pl.evaluation.scored import Scored, Scores, from_plain, shown, to_plain
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.history.saved import SavedRun
from sphere_pl.process.console import as_shown, say
from sphere_pl.progress import tracking
from sphere_pl.run.summaries import plain
from sphere_pl.storage.files import write_text
from sphere_pl.text.numbers import counted
from sphere_pl.text.usage import program


def main(args: Sequence[str]) -> None:
    """Score a run before and after, show the table and write it as JSON.

    Raises:
        UserError: If the run, the checkpoint or the data is not what it must be.
    """
    given, rest = _parse(args)
    state = load_state(given)
    data = _other_data(rest, state.run) if rest else None
    requests = state.requests if data is None else data.requests
    if not requests:
        raise UserError(f"{state.run.folder} has no edits yet to score. Name records with --data.name and --data.path.")
    before, after = _before_and_after(state, requests, evaluation_settings(state.run, given.batch_size))
    scores = plain(
        {
            "run_dir": str(state.run.folder),
            "model": state.run.history.header.model,
            "method": state.run.history.header.method,
            "edits": state.edits,
            "records": len(requests),
            "own_records": not rest,
            "data": None if data is None else data.extent,
            "before": to_plain(before),
            "after": to_plain(after),
        }
    )
    out = given.out or state.run.folder / "validation.json"
    show(scores, Console())
    write_text(out, json.dumps(scores, indent=1))  # after they are shown: a full disk does not lose them
    say(f"Written to {out}")


def _parse(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command's own arguments, and those that name other records: a mistake ends here, before a model is loaded."""
    parser = _parser()
    given, rest = parser.parse_known_args(args)
    if rest:
        parser.also = options(_data_parser())
        unknown = [arg for arg in rest if arg.startswith("-") and not arg.startswith("--data.")]
        if unknown:
            parser.error(f"unrecognized arguments: {unknown[0]}")
        _data_parser().parse_args(rest)
    return given, rest


def _before_and_after(
    state: State, requests: Sequence[EditRequest], settings: EvaluationSettings
) -> tuple[Scores, Scores]:
    """Score the unedited model, and then the edited one, which the state leaves behind."""
    with tracking() as track:
        evaluator = Evaluator(settings, state.run.chat).to(state.lm.device)
        unedited = evaluator.measure_unedited(state.lm, requests, track)
        state.edit()
        return unedited.scores, evaluator.score_end(state.lm, len(requests), 0, unedited.neighbors, track)


def _parser() -> Parser:
    parser = Parser(
        "validate",
        description="Score a saved run before and after its edits.",
        epilog="--data.name, --data.path and so on, as for fit, name other records than the run's own edits; where "
        "only --data.limit, --data.offset and the like are given, the rest is taken from the run's config.yaml.",
    )
    add_state_arguments(parser)
    parser.add_argument("--batch_size", type=int, help="records scored together; the run's own if left out")
    parser.add_argument("--out", type=Path, help="JSON file; validation.json in the run folder if left out")
    return parser


def _data_parser() -> SettingsParser:
    """The parser of `--data.*`, which names other records."""
    parser = SettingsParser(prog=f"{program()} validate", allow_abbrev=False)
    parser.add_class_arguments(EditDataModule, "data")
    return parser


def _other_data(args: Sequence[str], run: SavedRun) -> EditDataModule:
    """Read the records that `--data.*` names; what it leaves out is as the run had it, unless it names a format."""
    parser = _data_parser()
    own = run.section("data")
    if not any(arg.split("=")[0] == "--data.name" for arg in args):
        parser.set_defaults({f"data.{name}": value for name, value in own.items()})
    try:
        data: EditDataModule = parser.instantiate_classes(parser.parse_args(list(args))).data
    except UserError:
        raise
    except (KeyError, ValueError, TypeError) as error:
        said = str(error).rstrip(".")
        raise UserError(f"The data cannot be read as asked: {said}. Mend what --data.* and config.yaml say.") from error
    data.setup("validate")
    return data


def evaluation_settings(run: SavedRun, batch_size: int | None = None) -> EvaluationSettings:
    """What to measure, as the run measured it.

    Args:
        run: The run.
        batch_size: Records scored together; the run's own if None.

    Raises:
        UserError: If config.yaml says what cannot be measured, or the batch size is below 1.
    """
    known = {field.name for field in fields(EvaluationSettings)}
    given = {name: value for name, value in run.section("model", "evaluation").items() if name in known}
    try:
        settings = EvaluationSettings(**given)
    except (TypeError, ValueError) as error:
        said = str(error).rstrip(".")
        raise UserError(
            f"{run.folder / 'config.yaml'}: model.evaluation cannot be read: {said}. Restore it from a copy."
        ) from error
    if batch_size is None:
        return settings
    if batch_size < 1:
        raise UserError(f"--batch_size={batch_size} must be at least 1.")
    return replace(settings, batch_size=batch_size)


def show(scores: Mapping[str, Any], console: Console) -> None:
    """Print the table of before and after."""
    records = re.sub(r" edits?\b", "", scores.get("data") or f"{scores['records']:,}")
    heading = f"{scores['method']}, {counted(scores['edits'], 'edit')}; records scored: {records}"
    say(heading, console)
    table = Table()
    for column in ("", "before", "after"):
        table.add_column(column, justify="right" if column else "left")
    before, after = from_plain(scores["before"]), from_plain(scores["after"])
    for name in after:
        cells = (shown(name, each.get(name, Scored(math.nan))) for each in (before, after))
        table.add_row(name.replace("_", " "), *(as_shown(cell, console) for cell in cells))
    console.print(table)
