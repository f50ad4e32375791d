"""`python -m sphere_pl validate --run_dir R` (or `test`): score a saved run, on its own edits or on others."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jsonargparse
from rich.console import Console
from rich.table import Table

from sphere_pl.data.builtin import heldout_text
from sphere_pl.data.datamodule import EditDataModule
from sphere_pl.data.request import EditBatch, EditRequest
from sphere_pl.errors import UserError
from sphere_pl.evaluation.editing import EditingMetrics, answer_requests
from sphere_pl.evaluation.scoring import perplexity
from sphere_pl.files import write_text
from sphere_pl.language_model import LanguageModel
from sphere_pl.results import finite
from sphere_pl.runs.saved import SavedRun
from sphere_pl.runs.states import add_state_arguments, load_state
from sphere_pl.statistics import beginning, read_corpus


class Plan(NamedTuple):
    """What is scored.

    Attributes:
        requests: The records.
        batch_size: Records scored together.
        text: Text to measure perplexity on; not measured if empty.
        tokens: Tokens of it.
    """

    requests: list[EditRequest]
    batch_size: int
    text: str
    tokens: int


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
    plan = _plan(requests, state.run.config, given.batch_size)
    unedited: dict[int, list[list[int]]] = {}
    before = score(state.lm, plan, unedited)
    state.edit()
    after = score(state.lm, plan, unedited)
    scores = finite(
        {
            "run_dir": str(state.run.folder),
            "model": state.run.history.header.model,
            "method": state.run.history.header.method,
            "edits": state.edits,
            "records": len(requests),
            "own_records": not rest,
            "before": before,
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
    own = run.config.get("data") or {}
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


def _plan(requests: list[EditRequest], config: Mapping[str, Any], batch_size: int | None) -> Plan:
    """What to measure, as the run measured it."""
    settings = (config.get("model") or {}).get("evaluation") or {}
    tokens = int(settings.get("perplexity_tokens", 2048))
    size = int(batch_size or settings.get("batch_size", 20))
    if size < 1:
        raise UserError(f"--batch_size={batch_size} must be at least 1.")
    documents = read_corpus(settings["text"]) if settings.get("text") else [heldout_text()]
    return Plan(requests, size, beginning(documents, 20 * tokens) if tokens else "", tokens)


def score(lm: LanguageModel, plan: Plan, unedited: dict[int, list[list[int]]]) -> dict[str, float]:
    """Score a model as it is.

    Args:
        lm: The language model.
        plan: What is scored.
        unedited: The unedited model's answers to the neighbours, by record; filled in if it is empty.
    """
    metrics = EditingMetrics().to(lm.device)
    first = not unedited
    for start in range(0, len(plan.requests), plan.batch_size):
        batch = EditBatch(tuple(plan.requests[start : start + plan.batch_size]), start)
        answers = answer_requests(lm, batch.requests)
        if first:
            for place, each in enumerate(answers, start):
                unedited[place] = [neighbor.predicted for neighbor in each.neighbors]
        metrics.update(batch, answers, unedited)
    means = {name: float(value) for name, value in metrics.compute().items()}
    errors = {f"{name}_standard_error": float(value) for name, value in metrics.standard_errors().items()}
    return {**means, **errors, **({"perplexity": perplexity(lm, plan.text, plan.tokens)} if plan.text else {})}


def show(scores: Mapping[str, Any], out: Path, console: Console) -> None:
    """Print the table of before and after."""
    title = f"{scores['method']}, {scores['edits']} edits, scored on {scores['records']} records"
    table = Table(title=title, title_justify="left")
    for column in ("", "before", "after"):
        table.add_column(column, justify="right" if column else "left")
    for name in scores["after"]:
        if not name.endswith("_standard_error"):
            table.add_row(name.replace("_", " "), *(_number(scores[when], name) for when in ("before", "after")))
    console.print(table)
    console.print(f"Written to {out}", highlight=False, markup=False, soft_wrap=True)


def _number(scores: Mapping[str, float | None], name: str) -> str:
    value, error = scores.get(name), scores.get(f"{name}_standard_error")
    if value is None:
        return "-"
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"
