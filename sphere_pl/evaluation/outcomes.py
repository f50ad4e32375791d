"""What became of each edit: how likely its target was when its batch was done, and why it fails at the end."""

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from sphere_pl.data.request import EditRequest
from sphere_pl.editing.key_plan import KeyPlan
from sphere_pl.evaluation.answers import prompts
from sphere_pl.evaluation.scoring import Answer, answer
from sphere_pl.model.language_model import LanguageModel


class Cause(StrEnum):
    """Why the edited model does not answer an edit as wanted; the values are what files and reports show.

    Attributes:
        SKIPPED: The guard refused the batch's update, or put the weights back.
        SHARED_KEY: Another request of the batch has all but the same key, and another target.
        SINK: The subject begins the text, at an attention sink: it was edited after an opening that may not suit it.
        NOT_CONVERGED: Not even the target value makes the model say it.
        REGULARIZER: The target value does, but the update that was solved for does not reach it.
        NOT_LEARNED: The method has no target values; all that is known is that its update did not suffice.
        OVERWRITTEN: It was right after its batch, and a later batch has changed that.
        RUNS_ON: Every token of the target is the likeliest one, but the model writes a longer word than that.
    """

    SKIPPED = "skipped"
    SHARED_KEY = "shared key"
    SINK = "attention sink"
    NOT_CONVERGED = "not converged"
    REGULARIZER = "regularizer"
    NOT_LEARNED = "not learned"
    OVERWRITTEN = "overwritten"
    RUNS_ON = "runs on"


class Outcome(NamedTuple):
    """What is known of one edit.

    Attributes:
        likeliest: Whether every token of its target is the likeliest one at the end.
        learned: Whether that was so when its batch was done; None if it was not measured.
        converged: Whether its target value was found; None for a method without target values.
        found: What has been found out before or while it was edited, such as a shared key.
        followed: Whether a later batch was edited.
    """

    likeliest: bool = False
    learned: bool | None = None
    converged: bool | None = None
    found: Cause | None = None
    followed: bool = True


class Learned(NamedTuple):
    """How a request stood when its batch was done.

    Attributes:
        probability: Geometric mean probability of the target's tokens after its own prompt; NaN if not known.
        right: Whether each of them was the likeliest.
    """

    probability: float
    right: bool


def cause_of(outcome: Outcome) -> Cause:
    """Why an edit that fails does so.

    Example:
        >>> cause_of(Outcome(learned=True, converged=True)).value
        'overwritten'
        >>> cause_of(Outcome(learned=False, converged=True)).value, cause_of(Outcome(learned=False)).value
        ('regularizer', 'not learned')
    """
    if outcome.likeliest:
        return Cause.RUNS_ON
    if outcome.learned and outcome.followed:
        return Cause.OVERWRITTEN
    if outcome.found is not None:
        return outcome.found
    if outcome.converged is None:
        return Cause.NOT_LEARNED
    return Cause.REGULARIZER if outcome.converged else Cause.NOT_CONVERGED


def known_causes(plan: KeyPlan) -> dict[int, Cause]:
    """What is known before anything is edited of why an edit may not hold, by place in the stream."""
    causes = {}
    for place, request in enumerate(plan.requests):
        targets = {plan.requests[other].target_new for other in plan.sharing(place)}
        if targets - {request.target_new}:
            causes[place] = Cause.SHARED_KEY
        elif request.form.before and not request.form.after:
            causes[place] = Cause.SINK
    return causes


def ask_targets(lm: LanguageModel, requests: Sequence[EditRequest]) -> list[Learned]:
    """How likely each request's target is after its own prompt: one pass without gradients."""
    return [learned_of(each) for each in answer(lm, [prompts(request)[0][0] for request in requests])]


def learned_of(answered: Answer) -> Learned:
    """What an answer to a request's own prompt says of it."""
    return Learned(math.exp(answered.log_probability), answered.predicted == answered.target)


def counted(causes: Mapping[int, Cause]) -> dict[str, int]:
    """How many edits fail for each cause, the most frequent first.

    Example:
        >>> counted({0: Cause.SINK, 2: Cause.OVERWRITTEN, 5: Cause.OVERWRITTEN})
        {'overwritten': 2, 'attention sink': 1}
    """
    values = [str(cause) for cause in causes.values()]
    return dict(sorted(((value, values.count(value)) for value in dict.fromkeys(values)), key=lambda pair: -pair[1]))
