"""Each cause of a failed edit comes from what a run knows of it, and each has something to turn."""

import re
from types import SimpleNamespace

import pytest

from sphere_pl.data.request import EditRequest, Form
from sphere_pl.editing.key_plan import KeyPlan
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.evaluation.outcomes import Cause, Learned, known_causes
from sphere_pl.methods import FT, AlphaEdit
from sphere_pl.run.outcomes import advice, causes_of

RIGHT, WRONG = Learned(0.9, True), Learned(0.1, False)
CURIE = EditRequest("0", "{} was born in", "Marie Curie", "Oslo")
SUBJECTS = [CURIE._replace(case_id=str(n), subject=f"Person {n}") for n in range(6)]
# Edits 0 and 1 share a key, and so do 2 and 3, which ask for the same; 4 is asked after an opening.
STREAM = [
    CURIE, CURIE._replace(prompt="{} was a", target_new="pianist"), *SUBJECTS[:2],
    SUBJECTS[2]._replace(form=Form("This is well known. ")), *SUBJECTS[3:],
]  # fmt: skip
PLAN = KeyPlan(tuple(STREAM), ((), (0,), (), (2,), (), (), (), ()), 4)


def editor_of(failed, *, learned=None, missed=None, skipped=(), last=(), method=None):
    """What `causes_of` reads of an editor."""
    failures = SimpleNamespace(places=frozenset(failed))
    return SimpleNamespace(
        scores=SimpleNamespace(failures=failures, causes_found=known_causes(PLAN)),
        evaluator=SimpleNamespace(learned=learned or {}, missed=failed if missed is None else missed),
        guard=SimpleNamespace(skipped=[{"start": start, "cases": ["a"] * 2} for start in skipped]),
        places=last, requests=STREAM, method=method or AlphaEdit(), target_settings=TargetSettings(),
    )  # fmt: skip


def row(converged, clamped=0):
    return {"converged": converged, "clamped": clamped, "probability": 0.5}


@pytest.mark.parametrize(
    ("editor", "found", "cause", "turn"),
    [
        (editor_of([5], learned={5: WRONG}), {5: row(0)}, Cause.NOT_CONVERGED, "--model.targets.steps above"),
        (editor_of([5], learned={5: WRONG}), {5: row(0, 1)}, Cause.NOT_CONVERGED, "--model.targets.clamp above"),
        (editor_of([5], learned={5: WRONG}), {5: row(1)}, Cause.REGULARIZER, "ridge"),
        (editor_of([5], learned={5: WRONG}, method=FT()), {}, Cause.NOT_LEARNED, "relative_rate above"),
        (editor_of([5], learned={5: RIGHT}), {5: row(1)}, Cause.OVERWRITTEN, "--retry 1"),
        (editor_of([1], learned={1: RIGHT}), {1: row(1)}, Cause.OVERWRITTEN, "--retry 1"),
        (editor_of([1], learned={1: WRONG}), {1: row(0)}, Cause.SHARED_KEY, "--data.batch_size 1"),
        (editor_of([3], learned={3: WRONG}), {3: row(1)}, Cause.REGULARIZER, "ridge"),
        (editor_of([4], learned={4: WRONG}), {4: row(1)}, Cause.SINK, "words before the subject"),
        (editor_of([5], learned={5: WRONG}, skipped=[4]), {5: row(1)}, Cause.SKIPPED, "stronger regularizer"),
        (editor_of([5], learned={5: RIGHT}, missed=[]), {5: row(1)}, Cause.RUNS_ON, '"Oslo."'),
        (editor_of([5], learned={5: RIGHT}, last=[5]), {5: row(1)}, Cause.REGULARIZER, "ridge"),
    ],
)
def test_each_cause_is_found_and_says_what_to_turn(editor, found, cause, turn):
    causes = causes_of(editor, found)
    assert causes == dict.fromkeys(editor.scores.failures.places, cause)
    (line,) = advice(editor, causes, found)
    assert re.search(turn, line), line


def test_the_most_frequent_cause_is_advised_on_first_and_nothing_where_all_hold():
    learned = {1: WRONG, 5: WRONG, 6: WRONG}
    editor = editor_of([1, 5, 6], learned=learned)
    found = {1: row(1), 5: row(1), 6: row(1)}
    causes = causes_of(editor, found)
    assert "--data.batch_size 1" in advice(editor, causes, found)[1]
    assert causes_of(editor_of([]), {}) == {}
