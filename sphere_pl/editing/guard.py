"""Updates that would break the model are caught before they touch a weight."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from sphere_callbacks.functional import exact_products
from sphere_pl.editing.problem import BatchProblem
from sphere_pl.errors import UserError
from sphere_pl.methods.base import Method, State
from sphere_pl.methods.problem import LayerProblem
from sphere_pl.text.numbers import counted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GuardSettings:
    """What is done about an update that is not finite or far too large.

    A retried batch meets a stronger regulariser: its keys and residuals are scaled by `1 / sqrt(s)`, which for least
    squares is the regulariser and all earlier keys weighed `s` times. Methods without one (ROME, EMMET) and methods
    without keys (FT, LocFT-BF, UltraEdit) are not helped by that: their batch is skipped.

    Args:
        action: `retry` the matrix with stronger regularisers and skip the batch if none helps, `skip` the batch at
            once, or `stop` the run.
        max_norm_ratio: Largest Frobenius norm of an update, as a multiple of its matrix's own.
        strengthen: s of the first retry; the next ones take s², s³ and so on.
        retries: How many retries.
        max_skipped: Batches skipped one after another before the run stops: the model has collapsed then.
        first_batch: What is done if the model is wrecked after the first batch: `stop` the run, `warn` and continue, or
            do not look (`off`), neither then nor every hundred edits. Edits that do not hold but do no harm are said,
            and the run continues; so it does where later batches break the model.
        max_perplexity_ratio: Perplexity after the first batch, over that of the unedited model, that counts as wrecked;
            later over that of the last look, too.
    """

    action: Literal["retry", "skip", "stop"] = "retry"
    max_norm_ratio: float = 10.0
    strengthen: float = 10.0
    retries: int = 3
    max_skipped: int = 3
    first_batch: Literal["stop", "warn", "off"] = "stop"
    max_perplexity_ratio: float = 2.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.action not in ("retry", "skip", "stop"):
            raise UserError(f"`guard.action={self.action!r}` must be retry, skip or stop.")
        if self.first_batch not in ("stop", "warn", "off"):
            raise UserError(f"`guard.first_batch={self.first_batch!r}` must be stop, warn or off.")
        if self.max_perplexity_ratio <= 1:
            raise UserError(f"`guard.max_perplexity_ratio={self.max_perplexity_ratio}` must be above 1.")
        if self.max_norm_ratio <= 0 or self.strengthen <= 1 or self.retries < 0 or self.max_skipped < 1:
            raise UserError(
                f"`guard.max_norm_ratio={self.max_norm_ratio}` must be above 0, `strengthen={self.strengthen}` above "
                f"1, `retries={self.retries}` at least 0 and `max_skipped={self.max_skipped}` at least 1."
            )


class RefusedUpdateError(Exception):
    """No update of a matrix was good enough to be applied.

    Args:
        matrix: Its name.
        reason: What was wrong with the last one.
    """

    def __init__(self, matrix: str, reason: str) -> None:
        super().__init__(f"the update of {matrix} {reason}")
        self.matrix, self.reason = matrix, reason


class Attempt:
    """One batch that is edited whole or not at all.

    Attributes:
        kept: Whether its updates stayed; known when `Guard.all_or_nothing` has ended.
    """

    kept: bool = True


class Guard:
    """Finds updates that can be applied, and takes back a batch that has none.

    Args:
        settings: What counts as good, how often to retry, and when to stop the run.

    Attributes:
        retried: What each retry was about, in the order of the stream.
        skipped: Which batches were skipped, and why.
    """

    def __init__(self, settings: GuardSettings) -> None:
        self.settings = settings
        self.retried: list[dict[str, Any]] = []
        self.skipped: list[dict[str, Any]] = []
        self._skipped_in_a_row = 0
        self._start = 0  # edits before the batch at hand

    def solve(self, method: Method, problem: LayerProblem, state: State) -> Tensor:
        """Find one matrix's update; `problem` keeps the strength that it took.

        Returns:
            Δ of shape `[d_out, d_in]`.

        Raises:
            RefusedUpdateError: If there is none that can be applied.
        """
        settings = self.settings
        retries = settings.retries if settings.action == "retry" and method.needs_targets else 0
        first = reason = ""
        for attempt in range(retries + 1):
            problem.strength = settings.strengthen**attempt
            update, reason = _attempt(lambda: method.update(problem, state), problem.weight, settings.max_norm_ratio)
            if update is not None:
                if first:
                    self._note(problem, first)
                return update
            first = first or reason
        raise RefusedUpdateError(problem.name, reason)

    def _note(self, problem: LayerProblem, reason: str) -> None:
        log.warning("Batch from edit %d: the update of %s %s; solved with a regulariser %g times as strong.",
                    self._start, problem.name, reason, problem.strength)  # fmt: skip
        self.retried.append(
            {"start": self._start, "matrix": problem.name, "reason": reason, "strength": problem.strength}
        )

    @contextmanager
    def all_or_nothing(self, batch: BatchProblem) -> Iterator[Attempt]:
        """Put the batch's weights back if an update is refused on the way.

        Raises:
            UserError: If the batch is refused and the run is to stop.
        """
        before, self._start = [weight.detach().clone() for weight in batch.weights], batch.start
        attempt = Attempt()
        try:
            yield attempt
        except RefusedUpdateError as refused:
            attempt.kept = False
            with torch.no_grad():
                for weight, kept in zip(batch.weights, before, strict=True):
                    weight.copy_(kept)
                    weight.grad = None
            self._skip(refused, batch.case_ids)
        else:
            self._skipped_in_a_row = 0

    def _skip(self, refused: RefusedUpdateError, cases: list[str]) -> None:
        entry = {"start": self._start, "matrix": refused.matrix, "reason": refused.reason, "cases": cases}
        self.skipped.append(entry)
        self._skipped_in_a_row += 1
        if self.settings.action == "stop" or self._skipped_in_a_row >= self.settings.max_skipped:
            raise UserError(
                f"After {counted(self._start, 'edit')} {refused} ({self._skipped_in_a_row} batches in a row): the "
                "model has collapsed or the system is too ill-conditioned. Use a stronger regulariser (for example a "
                "larger ridge), a smaller targets.clamp, or --model.dtype=float32."
            ) from refused
        # As text: the exception holds the frames that it came through, and they hold matrices.
        log.warning("Batch from edit %d is skipped: %s.", self._start, str(refused))

    def judge(self, seen: str, fails: bool, wrecks: bool) -> None:
        """Say what the first batch did, if that is not well.

        Args:
            seen: What happened, in one line.
            fails: Whether most edits do not hold.
            wrecks: Whether continuing would wreck the model.

        Raises:
            UserError: If it would, and the run is to stop.
        """
        advice = (
            "Try settings that are found for this model (leave --model.layers and --model.targets out, or "
            "`python -m sphere_pl tune`), a lower --model.targets.clamp, or other layers"
        )
        if wrecks and self.settings.first_batch == "stop":
            raise UserError(
                f"{seen}\nThe run stops before it wrecks the model. {advice}; --model.guard.first_batch=warn continues."
            )
        if wrecks or fails:
            log.warning("%s\n%s.", seen, advice)

    def scalars(self) -> dict[str, float]:
        """How often it acted; nothing as long as it never did."""
        if not self.retried and not self.skipped:
            return {}
        return {"guard/retried": float(len(self.retried)), "guard/skipped": float(len(self.skipped))}

    def state_dict(self) -> dict[str, Any]:
        """What it has done so far."""
        return {"retried": self.retried, "skipped": self.skipped, "skipped_in_a_row": self._skipped_in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume."""
        self.retried, self.skipped = state["retried"], state["skipped"]
        self._skipped_in_a_row = state["skipped_in_a_row"]


def _attempt(solve: Callable[[], Tensor], weight: Tensor, limit: float) -> tuple[Tensor | None, str]:
    """Solve once, in full float32; says what is wrong with the update if it cannot be applied."""
    try:
        with exact_products():
            update = solve()
    except LinAlgError as error:
        return None, f"could not be solved for ({str(error).splitlines()[0]})"
    ratio = float(torch.linalg.matrix_norm(update) / torch.linalg.matrix_norm(weight).clamp_min(1e-30))
    if ratio <= limit:
        return update, ""
    if not bool(torch.isfinite(update).all()):
        return None, "is not finite"
    return None, f"is {ratio:.3g} times as large as the matrix (guard.max_norm_ratio={limit:g})"
