"""`python -m sphere_pl validate --run_dir R` (or `test`): score a saved run, on its own edits or on others."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jsonargparse
from rich.console import Console
from rich.table import Table

from sphere_pl.console import as_shown, say
from sphere_pl.data.datamodule import EditDataModule
from sphere_pl.data.request import EditRequest
from sphere_pl.errors import UserError
from sphere_pl.evaluation.evaluator import Evaluator, score_requests
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.files import write_text
from sphere_pl.monitors.results import finite
from sphere_pl.progress import untracked
from sphere_pl.runs.saved import SavedRun
from sphere_pl.runs.states import add_state_arguments, load_state


def main(args: Sequence[str]) -> None:
    """Score a run before and after, show the table and write it as JSON.

    Raises:
        UserError: If the run, the checkpoint or the data is not what it must be.
    """
    given, rest = _parser().parse_known_args(args)
    unknown = [arg for arg in rest if arg.startswith("-") and not arg.startswith("--data.")]
    if unknown:
        raise UserError(f"{unknown[0]} is unknown. See `python -m sphere_pl validate --help`.")
    state = load_state(given)
    requests = _other_requests(rest, state.run) if rest else state.requests
    if not requests:
        raise UserError(f"{state.run.folder} has no edits yet to score. Name records with --data.name and --data.path.")
    settings = _settings(state.run, given.batch_size)
    unedited = Evaluator(settings).to(state.lm.device).measure_unedited(state.lm, requests, untracked)
    state.edit()
    after = score_requests(state.lm, requests, settings, unedited.neighbors)
    scores = finite(
        {
            "run_dir": str(state.run.folder),
            "model": state.run.history.header.model,
            "method": state.run.history.header.method,
            "edits": state.edits,
            "records": len(requests),
            "own_records": not rest,
            "before": unedited.scores,
            "after": after,
        }
    )
    out = given.out or state.run.folder / "validation.json"
    write_text(out, json.dumps(scores, indent=1))
    show(scores, out, Console())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sphere_pl validate",
        description="Score a saved run before and after its edits.",
        epilog="--data.name, --data.path and so on, as for fit, name other records than the run's own edits; where "
        "only --data.limit, --data.offset and the like are given, the rest is taken from the run's config.yaml.",
        allow_abbrev=False,
    )
    add_state_arguments(parser)
    parser.add_argument("--batch_size", type=int, help="records scored together; the run's own if left out")
    parser.add_argument("--out", type=Path, help="JSON file; validation.json in the run folder if left out")
    return parser


def _other_requests(args: Sequence[str], run: SavedRun) -> list[EditRequest]:
    """Read the records that `--data.*` names; what it leaves out is as the run had it, unless it names a format."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(EditDataModule, "data")
    own = run.section("data")
    if not any(arg.split("=")[0] == "--data.name" for arg in args):
        parser.set_defaults({f"data.{name}": value for name, value in own.items()})
    try:
        data: EditDataModule = parser.instantiate_classes(parser.parse_args(list(args))).data
    except UserError:
        raise
    except (jsonargparse.ArgumentError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"The data cannot be read as asked: {error}") from error
    data.setup("validate")
    return data.requests


def _settings(run: SavedRun, batch_size: int | None) -> EvaluationSettings:
    """What to measure, as the run measured it."""
    known = {field.name for field in fields(EvaluationSettings)}
    given = {name: value for name, value in run.section("model", "evaluation").items() if name in known}
    try:
        settings = EvaluationSettings(**given)
    except (TypeError, ValueError) as error:
        raise UserError(f"{run.folder / 'config.yaml'}: model.evaluation cannot be taken up: {error}") from error
    if batch_size is None:
        return settings
    if batch_size < 1:
        raise UserError(f"--batch_size={batch_size} must be at least 1.")
    return replace(settings, batch_size=batch_size)


def show(scores: Mapping[str, Any], out: Path, console: Console) -> None:
    """Print the table of before and after."""
    heading = f"{scores['method']}, {scores['edits']} edits; records scored: {scores['records']}"
    say(heading, console)
    table = Table()
    for column in ("", "before", "after"):
        table.add_column(column, justify="right" if column else "left")
    for name in scores["after"]:
        if not name.endswith("_standard_error"):
            table.add_row(
                name.replace("_", " "),
                *(as_shown(_number(scores[when], name), console) for when in ("before", "after")),
            )
    console.print(table)
    say(f"Written to {out}", console)


def _number(scores: Mapping[str, float | None], name: str) -> str:
    value, error = scores.get(name), scores.get(f"{name}_standard_error")
    if value is None:
        return "-"
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"
