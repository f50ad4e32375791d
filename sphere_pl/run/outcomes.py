"""What became of the edits of a run: which hold, why the others do not, and what to turn."""

from collections.abc import Mapping
from typing import Any

import lightning as L
from torch import Tensor

from sphere_pl.data.request import EditRequest
from sphere_pl.editor import SequentialEditor
from sphere_pl.evaluation.outcomes import Cause, Outcome, cause_of, counted
from sphere_pl.run.target_table import TargetTable
from sphere_pl.trainers import callbacks_of

_ROWS = 64  # of each matrix, by which it is told how far it has moved
Found = Mapping[int, Mapping[str, float]]


def say_outcomes(trainer: "L.Trainer", editor: SequentialEditor, weights_moved: float) -> dict[str, Any]:
    """The entries of results.json on the edits one by one; targets.csv gets its last causes."""
    tables = callbacks_of(trainer, TargetTable)
    found: Found = tables[0].found() if tables else {}
    causes = causes_of(editor, found)
    for table in tables:
        table.finish(causes)
    failures = editor.scores.failures
    listed = {} if failures is None else failures.listed
    asked = editor.evaluator.scorable(editor.edits_seen)
    made = editor.evaluator.made.values()
    facts = [{"edit": place + 1, **fact} for place, fact in enumerate(editor.scores.facts)]
    return {
        "scored": None if len(asked) == editor.edits_seen else [place + 1 for place in asked],
        "held": None if failures is None else len(asked) - len(failures.places),
        "failed": [{"edit": p + 1, **each, **_numbers(editor, found, p, causes[p])} for p, each in listed.items()],
        "failed_edits": [] if failures is None else [place + 1 for place in sorted(failures.places)],
        "causes": counted(causes),
        "advice": advice(editor, causes, found),
        "facts": [fact | ({} if fact["right"] else {"cause": causes[fact["edit"] - 1]}) for fact in facts],
        "edited_again": [place + 1 for place in getattr(trainer.train_dataloader, "edited_again", ())],
        "edited_as": editor.evaluator.chat.mode,
        "at_sink": sum(_at_sink(each) for each in editor.plan.requests[: editor.edits_seen]),
        "weights_moved": weights_moved,
        "made_neighbors": {"records": sum(map(bool, made)), "prompts": sum(map(len, made))},
    }


def _at_sink(request: EditRequest) -> bool:
    """Whether a request is edited and asked after a stock opening, since its subject would be at an attention sink."""
    return bool(request.form.before and not request.form.after)


def causes_of(editor: SequentialEditor, found: Found) -> dict[int, Cause]:
    """Why each edit fails that does, by place in the stream."""
    scores, failures = editor.scores, editor.scores.failures
    skipped = {
        place for entry in editor.guard.skipped for place in range(entry["start"], entry["start"] + len(entry["cases"]))
    }
    causes = {}
    for place in sorted(failures.places) if failures is not None else ():
        learned = editor.evaluator.learned.get(place)
        outcome = Outcome(
            place not in editor.evaluator.missed,
            None if learned is None else learned.right,
            bool(found[place]["converged"]) if place in found else None,
            Cause.SKIPPED if place in skipped else scores.causes_found.get(place),
            place not in editor.places,
        )
        causes[place] = cause_of(outcome)
    return causes


def _numbers(editor: SequentialEditor, found: Found, place: int, cause: Cause) -> dict[str, Any]:
    """Cause and probabilities of a failed edit: of its target value, and of the edited model after its batch."""
    learned = editor.evaluator.learned.get(place)
    probability = found[place]["probability"] if place in found else None
    return {
        "cause": cause,
        "probability": probability,
        "edited_probability": None if learned is None else learned.probability,
    }


def advice(editor: SequentialEditor, causes: Mapping[int, Cause], found: Found) -> list[str]:
    """What to turn, for each cause, the most frequent first."""
    lines = [_advice(editor, Cause(cause), causes, found) for cause in counted(causes)]
    return [line for line in dict.fromkeys(lines) if line]


def _advice(editor: SequentialEditor, cause: Cause, causes: Mapping[int, Cause], found: Found) -> str:
    places = [place for place, each in causes.items() if each is cause]
    settings, target = editor.target_settings, editor.requests[places[0]].target_new
    clamped = sum(bool(found[place]["clamped"]) for place in places if place in found)
    longer = f"--model.targets.clamp above {settings.clamp:g}"
    faster = f"--model.targets.learning_rate above {settings.rate:g} or " if settings.by_adam else ""
    more = f"{faster}--model.targets.steps above {settings.steps}"
    lever = editor.method.lever or "more layers (--model.layers)"
    return {
        Cause.NOT_CONVERGED: longer if 2 * clamped > len(places) else more,
        Cause.REGULARIZER: lever,
        Cause.NOT_LEARNED: lever,
        Cause.SHARED_KEY: "one fact of a subject in a batch (--data.batch_size 1), or prompts that name it later",
        Cause.SINK: "words before the subject, so that it does not begin the prompt",
        Cause.SKIPPED: "a stronger regularizer, or --model.targets.clamp lower",
        Cause.OVERWRITTEN: f"--retry {len(causes)}, which edits what failed again in a last batch",
        Cause.RUNS_ON: f'a target that says where it ends, such as "{target}."',
    }[cause]


def rows_of(editor: SequentialEditor) -> dict[str, Tensor]:
    """Some rows of each edited matrix, on the CPU."""
    rows = {}
    for name, matrix in editor.matrices.items():
        step = max(1, len(matrix) // _ROWS)
        rows[name] = matrix[::step].to("cpu", copy=True)
    return rows


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """How far weights have moved, as a share of their norm; NaN where nothing is known.

    Example:
        >>> moved({"w": torch.tensor([[3.0, 4.0]])}, {"w": torch.tensor([[3.0, 4.5]])})
        0.1
    """
    if before.keys() != after.keys() or not before:
        return float("nan")
    distance = sum(float((after[name] - rows).double().square().sum()) for name, rows in before.items())
    size = sum(float(rows.double().square().sum()) for rows in before.values())
    return (distance / size) ** 0.5 if size else float("nan")
