"""`python -m sphere_pl undo --run_dir R Norway`: a run without some of its edits, as a run folder of its own."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from sphere_pl.commands.arguments import add_load_arguments, add_run_arguments, load_options, run_folder
from sphere_pl.commands.asking_again import scored_again
from sphere_pl.commands.parsers import Parser
from sphere_pl.commands.predict import continue_prompts
from sphere_pl.commands.validate import evaluation_settings
from sphere_pl.commands.which_run import read_edits
from sphere_pl.data.request import EditRequest
from sphere_pl.errors import UserError
from sphere_pl.evaluation.cases import look_at_failures
from sphere_pl.evaluation.evaluator import Evaluator
from sphere_pl.evaluation.scored import Scores
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.history.by_hand import lasting
from sphere_pl.history.left_out import check_without
from sphere_pl.history.log import log_digest
from sphere_pl.history.rebuild import restrained
from sphere_pl.history.saved import EDITED, RESULTS, BaseModel, SavedRun, save_matrices
from sphere_pl.history.undo import Undone, is_exact, write_without
from sphere_pl.model.generation import answer_tokens
from sphere_pl.process.closing import after_results
from sphere_pl.process.console import say
from sphere_pl.progress import tracking
from sphere_pl.run.lock import RunLock
from sphere_pl.run.summaries import plain
from sphere_pl.storage.files import write_text
from sphere_pl.text.matching import begins_with
from sphere_pl.text.names import option
from sphere_pl.text.numbers import counted

_ANSWER = 8  # tokens that a removed fact's answer is judged and shown by, at least


class Measured(NamedTuple):
    """The remaining edits and the removed ones, on three models.

    Attributes:
        before: Scores of the unedited model on the remaining edits.
        held: Those of the run.
        after: Those of the run without the removed edits.
        found: What results.json says of the last one.
        answers: For each removed edit, what the three write.
        tokens: How many tokens each of them is given.
    """

    before: Scores
    held: Scores
    after: Scores
    found: dict[str, Any]
    answers: list[tuple[str, ...]]
    tokens: int

    @property
    def returned(self) -> int:
        """Of how many removed edits the answer is the unedited model's again."""
        return sum(unedited == now for unedited, _, now in self.answers)


def main(args: Sequence[str]) -> None:
    """Take edits back.

    Raises:
        UserError: If an edit is unknown, the run cannot be solved again, or the place to write to is taken.
    """
    given = _parser().parse_args(args)
    run = SavedRun.open(run_folder(given))
    kept = lasting(run.folder)
    kept = kept.resolve() if kept.name in {"", ".."} else kept  # such as `.`
    target = Path(given.out) if given.out else kept.with_name(f"{kept.name}-undone")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not empty. Name another folder with --out, or delete it first.")
    cases = check_without(run, given.edits, len(run.history.entries))
    if len(cases) == len(run.history.requests):
        raise UserError(
            f"That would take back all edits of {run.folder}: what is left is its base model. Use that, or take back "
            "fewer."
        )
    undone, measured = take_back(target, run, run.load_base(load_options(given)), cases)
    _show(measured, run, undone, cases, target, Console())


def take_back(
    target: Path,
    run: SavedRun,
    base: BaseModel,
    cases: Sequence[str],
    evaluation: EvaluationSettings | None = None,
    quiet: bool = False,
) -> tuple[Undone, Measured]:
    """Write a run without some of its edits; the model is the one without them afterwards.

    Args:
        target: A new folder, or an empty one; after an error a new one is gone.
        run: The run.
        base: Its unedited model.
        cases: The edits' case ids, of which some others are left.
        evaluation: What is measured; if None what the run had measured.
        quiet: Show no progress.

    Raises:
        UserError: If the run cannot be solved again.
    """
    held = run.weights(base)
    made = not target.exists()
    try:
        with RunLock(target):
            undone = write_without(target, run, base, cases)
            measure = partial(_measure, run, base, evaluation or evaluation_settings(run), quiet)
            return undone, _finish(target, run, base, held, undone, cases, measure)
    except BaseException:
        if made:
            shutil.rmtree(target, ignore_errors=True)
        raise


def _parser() -> Parser:
    parser = Parser(
        "undo",
        description="Take edits back: solve the batches of a run again without them, into a run folder of its own, "
        "which can be exported and continued (fit --from) like any other.",
    )
    parser.add_argument("edits", nargs="+", metavar="CASE_OR_SUBJECT", help="edits by case id or subject")
    add_run_arguments(parser)
    parser.add_argument("--out", type=Path, help="folder of the new run; <run_dir>-undone if left out")
    add_load_arguments(parser)
    return parser


def _finish(
    target: Path,
    run: SavedRun,
    base: BaseModel,
    held: Mapping[str, Tensor],
    undone: Undone,
    cases: Sequence[str],
    measure: Callable[..., Measured],
) -> Measured:
    """Write the weights and the results of the new folder."""
    weights = restrained(base.weights, undone.weights, run.history.header.restraint)
    removed = [request for request in run.history.requests if request.case_id in cases]
    measured = measure((held, weights), undone.history.requests, removed)
    about = {"model": run.history.header.model, "method": run.results.get("method_name"), "edits": undone.history.edits}
    save_matrices(target / EDITED, run.history.header.matrices, weights, about)
    results = {**_unmeasured(run), "edits": undone.history.edits, **measured.found}
    results |= {"continues": {"run_dir": str(run.folder), "edits": run.history.edits}, "undone": list(cases)}
    results["edited_sha256"] = hashlib.sha256((target / EDITED).read_bytes()).hexdigest()
    results["edit_log_sha256"] = log_digest(target)
    write_text(target / RESULTS, json.dumps(plain(results), indent=1))
    with after_results("report.html"):
        from sphere_pl.report import write_report

        write_report(target)
    return measured


def _unmeasured(run: SavedRun) -> dict[str, Any]:
    """What the run's results say that still holds; curves and times are those of no run."""
    kept = ("model", "method", "method_name", "transforms", "statistics", "versions", "seed")
    groups = {name: value for name, value in run.results.items() if isinstance(value, dict | list)}
    empty: dict[str, Any] = {name: type(value)() for name, value in groups.items()}
    return {**empty, **{name: run.results.get(name) for name in kept}}


def _measure(
    run: SavedRun,
    base: BaseModel,
    settings: EvaluationSettings,
    quiet: bool,
    both: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    remaining: Sequence[EditRequest],
    removed: Sequence[EditRequest],
) -> Measured:
    evaluator = Evaluator(settings, run.chat).to(base.lm.device)
    prompts = [request.question for request in removed]
    with tracking(quiet) as track:
        count = len(remaining)
        unedited = evaluator.measure_unedited(base.lm, remaining, track, count)
        wanted = [text for each in removed for text in (each.target_new, *each.aliases)]
        room = answer_tokens(base.lm, wanted, _ANSWER)
        answers = [continue_prompts(base.lm, prompts, room)]
        scores = []
        for weights, held in zip(both, (run.history.requests, remaining), strict=True):
            base.write(dict(weights))
            read_edits(base.lm, run, held)
            scores.append(evaluator.score_end(base.lm, count, count, unedited.neighbors, track))
            answers.append(continue_prompts(base.lm, prompts, room, answers[0]))
        failures = look_at_failures(base.lm, evaluator.missed)
    found = scored_again(evaluator, unedited.scores, scores[1], failures)
    return Measured(unedited.scores, scores[0], scores[1], found, list(zip(*answers, strict=True)), room)


def _show(
    measured: Measured, run: SavedRun, undone: Undone, cases: Sequence[str], target: Path, console: Console
) -> None:
    """Say what has become of the removed edits and of the others."""
    removed = [request for request in run.history.requests if request.case_id in cases]
    table = Table(show_lines=True)
    for column in ("taken back", "unedited", "edited", "now"):
        table.add_column(column, overflow="fold")
    for request, answers in zip(removed, measured.answers, strict=True):
        table.add_row(*map(Text, (f"{request.case_id}: {request.question}", *(each.strip() for each in answers))))
    console.print(table)
    held, after = (scores["efficacy"].value for scores in (measured.held, measured.after))
    still = sum(
        begins_with(now.strip(), (request.target_new, *request.aliases))
        for request, (_, _, now) in zip(removed, measured.answers, strict=True)
    )
    of = f"of {counted(len(removed), 'answer')}"
    say(
        f"{counted(measured.returned, f'{of} is', f'{of} are')} the unedited model's again, in all of the "
        f"{measured.tokens} tokens shown; {counted(still, 'still begins', 'still begin')} with what was taken back.",
        console,
    )
    say(f"Efficacy of the other {counted(undone.history.edits, 'edit')}: {held:.3f} before, {after:.3f} now.", console)
    if is_exact(run.history, cases):
        say("Exact: nothing that is left was measured on weights that held these edits.", console)
    else:
        say("Approximate: keys, residuals and targets of later edits were measured with these edits in place.", console)
    say(f"The run without them is in {target}; continue it with fit {option('--from', target)}.", console)
