"""A look at the model after a run's first batch: settings that do not suit it show there, before it is wrecked."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from sphere_pl.data.request import EditBatch
from sphere_pl.editing.guard import GuardSettings
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editing.targets import Targets
from sphere_pl.evaluation.evaluator import Evaluator
from sphere_pl.evaluation.outcomes import ask_targets
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.text.numbers import counted

_HOLD = 0.5  # of the batch: fewer edits that hold are worth a word
_GROWTH = 1.5  # of a matrix's norm in one batch: more is worth a word


class FirstBatch(NamedTuple):
    """What the first batch did.

    Attributes:
        edits: How many edits it had.
        held: How many of them the edited model answers as wanted.
        unconverged: How many targets ran out of steps; None for methods that have none.
        growth: Largest norm of an edited matrix over what it was.
        perplexity: On the opening of held-out prose before and after; None if it is turned off.
    """

    edits: int
    held: int
    unconverged: int | None
    growth: float
    perplexity: tuple[float, float] | None

    def wrecks(self, limits: GuardSettings) -> bool:
        """Whether continuing would wreck the model: perplexity or a matrix is more times what it was than allowed."""
        ratio = limits.max_perplexity_ratio
        damaged = self.perplexity is not None and not self.perplexity[1] <= ratio * self.perplexity[0]
        return damaged or not self.growth <= max(limits.max_norm_ratio, _GROWTH)

    @property
    def fails(self) -> bool:
        """Whether most edits do not hold."""
        return self.held < _HOLD * self.edits

    def line(self) -> str:
        """What happened, in one line."""
        of = f"of {counted(self.edits, 'edit')}"
        parts = [counted(self.held, f"{of} holds", f"{of} hold")]
        if self.unconverged:
            parts.append(f"{counted(self.unconverged, 'target value')} did not converge")
        if self.perplexity is not None:
            before, after = self.perplexity
            parts.append(f"perplexity {before:.4g} -> {after:.4g}")
        if not self.growth <= _GROWTH:
            parts.append(f"a matrix's norm grew {self.growth:.3g} times")
        return f"After the first batch {', '.join(parts)}."


def look(
    lm: LanguageModel,
    batch: EditBatch,
    targets: tuple[Targets | None, TargetSettings],
    norms: tuple[Sequence[Tensor], Sequence[Tensor]],
    evaluator: Evaluator,
    before: float | None,
) -> FirstBatch:
    """Look at the model after its first batch.

    Args:
        lm: The edited model.
        batch: That batch.
        targets: Its target values, None for a method without, and how they were optimised.
        norms: Of the edited matrices before and after, each `[]`.
        evaluator: Measures the perplexity, and keeps what is found of the edits.
        before: Perplexity of the unedited model on the text's opening; None if it was not measured.
    """
    known_of = [evaluator.learned.get(place) for place in batch.places]  # a callback may have asked already
    learned = [each for each in known_of if each is not None]
    if len(learned) < len(batch.requests):
        learned = ask_targets(lm, batch.requests)
        evaluator.learned |= dict(zip(batch.places, learned, strict=True))
    held = sum(each.right for each in learned)
    values, settings = targets
    unconverged = None if values is None else int(values.unconverged(settings).sum())
    growth = max(float(new / old.clamp_min(1e-30)) for old, new in zip(*norms, strict=True))
    now = None if before is None else evaluator.opening(lm)
    perplexity = None if before is None or now is None else (before, now)
    return FirstBatch(len(batch.requests), held, unconverged, growth if math.isfinite(growth) else math.inf, perplexity)
