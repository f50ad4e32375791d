"""All edits of a finished run asked again, and what results.json then says of them."""

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sphere_pl.commands.which_run import read_edits
from sphere_pl.evaluation.cases import Failures, look_at_failures
from sphere_pl.evaluation.evaluator import Evaluator
from sphere_pl.evaluation.scored import Scores, to_plain
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.history.saved import RESULTS, BaseModel, SavedRun
from sphere_pl.progress import untracked
from sphere_pl.report import write_report
from sphere_pl.run.summaries import plain
from sphere_pl.storage.files import write_text


def ask_again(
    run: SavedRun, base: BaseModel, weights: Mapping[str, Tensor], settings: EvaluationSettings
) -> dict[str, Any]:
    """Score all edits and put that into the run's results; the model is the edited one afterwards.

    Args:
        run: The run.
        base: Its model, unedited.
        weights: The edited matrices.
        settings: What is measured.

    Returns:
        The results.
    """
    requests, evaluator = run.history.requests, Evaluator(settings, run.chat).to(base.lm.device)
    unedited = evaluator.measure_unedited(base.lm, requests, untracked)
    base.write(dict(weights))
    read_edits(base.lm, run, requests)
    after = evaluator.score_end(base.lm, len(requests), 0, unedited.neighbors)
    found = scored_again(evaluator, unedited.scores, after, look_at_failures(base.lm, evaluator.missed))
    results: dict[str, Any] = plain({**run.results, **found})
    write_text(run.folder / RESULTS, json.dumps(results, indent=1))
    write_report(run.folder)
    return results


def scored_again(evaluator: Evaluator, before: Scores, after: Scores, failures: Failures) -> dict[str, Any]:
    """The entries of results.json about edits that an evaluator has just asked; why some fail is not known then."""
    asked = evaluator.scorable(evaluator.edits)
    return {
        "before": to_plain(before),
        "after": to_plain(after),
        "scored": None if len(asked) == evaluator.edits else [place + 1 for place in asked],
        "held": len(asked) - len(failures.places),
        "failed": [{"edit": place + 1, **each} for place, each in failures.listed.items()],
        "failed_edits": [place + 1 for place in sorted(failures.places)],
        "causes": {},
        "advice": [],
    }
