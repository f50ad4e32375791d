"""Take edits out of a run: solve its batches again without them.

The batches are solved again in their order, from the unedited weights, with the keys and residuals that the run logged,
the rows of the edits to leave out dropped, and through the run's own callbacks (RECT, SPHERE). The method's memory of
earlier keys is built from the remaining rows as well. No forward pass is made.

What is exact: everything before the first batch that loses a row; and the whole result if only rows of the last batch
go and a single matrix is edited. What is approximated: keys, residuals and remembered keys of later batches, and the
residuals of deeper matrices of the same batch, were measured on weights that held the edits now left out. The targets z
of later batches were found on those weights, too.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from sphere_callbacks import LayerwiseEdit, Loop
from sphere_pl.editing.algorithm import edit_batch, remember
from sphere_pl.editing.curvature import curvature_factors
from sphere_pl.editing.guard import Guard, GuardSettings
from sphere_pl.editing.kept_moments import second_moments
from sphere_pl.editing.moments import SecondMoment, StatisticsSettings
from sphere_pl.editing.problem import BatchProblem, Solved
from sphere_pl.editing.states import MethodStates
from sphere_pl.errors import UserError
from sphere_pl.history.continuation import remember_logged
from sphere_pl.history.entries import Entry
from sphere_pl.history.left_out import check_without, kept_rows, unsolvable
from sphere_pl.history.log import EditHistory
from sphere_pl.history.low_rank import ROUNDING
from sphere_pl.history.rebuild import rebuild
from sphere_pl.history.recipes import Recipe, Segment, build_recipe, segments
from sphere_pl.history.saved import BaseModel, SavedRun
from sphere_pl.methods.base import Method, State
from sphere_pl.methods.problem import KnownProblem, LayerProblem
from sphere_pl.progress import untracked

_TOLERANCE = 1e-2  # of the accumulated change's norm; another method or projection misses by far more


def solve_without(run: SavedRun, base: BaseModel, case_ids: Collection[str], last: int) -> dict[str, Tensor]:
    """Solve the batches up to entry `last` again without some cases; see `Replay`.

    Args:
        run: The run.
        base: Its unedited model, as loaded.
        case_ids: The cases to leave out, by their ids or subjects.
        last: Number of the last entry to solve.

    Returns:
        The matrices with which the run would have gone on, float32 `[d_out, d_in]`, by name.

    Raises:
        UserError: If a case is unknown, the method has no keys and residuals, the log lacks them, or what was logged
            cannot be solved again.
    """
    *_, (_, matrices) = Replay(run, base, last).without(frozenset(check_without(run, case_ids, last)))
    return matrices.copy()


def _states(method: Method, base: BaseModel, statistics: StatisticsSettings) -> dict[str, State]:
    """What the method knows of each matrix before the first batch, in CPU memory."""
    moments: dict[str, SecondMoment] = {}
    if method.needs_second_moment:
        moments = second_moments(base.lm, base.sites, statistics, untracked)
    states = {}
    for name, weight in base.weights.items():
        state = method.initial_state(weight, moments[name].matrix.cpu() if moments else None)
        states[name] = {part: tensor.cpu() for part, tensor in state.items()}
    return states


def _check_same(
    again: Mapping[str, Tensor], logged: Mapping[str, Tensor], base: Mapping[str, Tensor], run: SavedRun
) -> None:
    for name, weight in logged.items():
        # Weights are rounded, and a batch may change next to nothing.
        moved, rounding = float((weight - base[name]).norm()), ROUNDING * float(base[name].norm())
        missed = float((again[name] - weight).norm())
        if not missed <= _TOLERANCE * moved + rounding:
            raise UserError(
                f"Solving {run.folder} again does not give the change of {name} that it logged (off by "
                f"{missed / max(moved, rounding):.1%}): something that config.yaml does not name acted on its updates, "
                "such as a callback of your own or a retry with another regulariser. Edits cannot be taken out of this "
                "run; run `fit` again on data without them."
            )


class Matrices(nn.Module):
    """The weights that are edited again."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = list(weights)
        self.measure: Callable[[int], dict[str, tuple[Tensor, Tensor]]] | None = None
        self.weights = nn.ParameterList(nn.Parameter(weight.clone()) for weight in weights.values())

    def copy(self) -> dict[str, Tensor]:
        """Their values as they are now, by name."""
        return {name: weight.detach().clone() for name, weight in zip(self.names, self.weights, strict=True)}

    def curvature_factors(self, tokens: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Kronecker factors on the unedited model, as a run's module gives them to its callbacks."""
        if self.measure is None:
            raise RuntimeError("There is no model behind these matrices.")
        return self.measure(tokens)

    @torch.no_grad()
    def put_back(self, weights: Mapping[str, Tensor]) -> None:
        """Give them the values of another time."""
        for name, weight in zip(self.names, self.weights, strict=True):
            weight.copy_(weights[name])


class _LoggedBatch(BatchProblem):
    """A batch of the log without the rows of some cases: what a run measured, with no model behind it."""

    def __init__(self, entry: Entry, weights: Sequence[Tensor], names: Sequence[str], solved: Sequence[Solved]) -> None:
        self.weights, self.case_ids, self.start = weights, entry.case_ids, entry.edits - len(entry.case_ids)
        self.names, self.solved = names, solved

    def at(self, layer: int) -> LayerProblem:
        logged = self.solved[layer]
        return KnownProblem(logged.keys, logged.residuals, self.weights[layer].detach(), self.names[layer])

    def edited(self) -> Iterator[tuple[int, LayerProblem]]:
        for layer, logged in enumerate(self.solved):
            if logged.remembered is not None:
                yield layer, KnownProblem(logged.remembered, logged.residuals, self.weights[layer].detach())


class Replay:
    """The batches of a run edited again, without some edits, with its callbacks around the optimizer.

    Args:
        run: The run.
        base: Its unedited model, as loaded.
        last: Number of the last entry to edit again.

    Raises:
        UserError: If the run cannot be solved again.
    """

    def __init__(self, run: SavedRun, base: BaseModel, last: int) -> None:
        self.run, self.base, self.last = run, base, last
        self.history = run.history
        self.callbacks: list[Callback] = []
        self._prepared: dict[int, dict[str, State]] = {}

    def without(self, left_out: frozenset[str]) -> Iterator[tuple[Entry, Matrices]]:
        """Edit again without some cases; gives every entry with the matrices as they are after it.

        Before that, the batches up to the first one that loses a row are solved with all their rows, and must give what
        the run logged.

        Raises:
            UserError: If what was logged cannot be solved again.
        """
        first = next(each.number for each in self.history.entries if left_out & set(each.case_ids))
        *_, (_, again) = self._edit(frozenset(), first)
        _check_same(again.copy(), rebuild(self.base.weights, self.history, first), self.base.weights, self.run)
        yield from self._edit(left_out, self.last)

    def _edit(self, left_out: frozenset[str], last: int) -> Iterator[tuple[Entry, Matrices]]:
        matrices, entries = Matrices(self.base.weights), self.history.entries[:last]
        returns = {entry.base for entry in entries if entry.base != entry.number - 1}
        kept, begun = {0: matrices.copy()}, 0
        for segment in segments(self.run):
            mine = entries[begun : segment.last]
            if not mine:
                break
            part = self._begin(segment, matrices, left_out, begun)
            for entry in mine:
                if entry.base != entry.number - 1:
                    matrices.put_back(kept[entry.base])
                elif entry.requests:
                    part.edit(entry, left_out)
                if entry.number in returns:
                    kept[entry.number] = matrices.copy()
                yield entry, matrices
            begun = segment.last

    def _begin(self, segment: Segment, matrices: Matrices, left_out: frozenset[str], begun: int) -> "_SegmentReplay":
        """Prepare method and callbacks on the unedited matrices, as a run does; the earlier keys are remembered."""
        made = build_recipe(segment)
        if not made.method.needs_targets and made.method.retrieval is None:
            raise unsolvable(self.run)
        self.callbacks = made.callbacks
        if segment.last not in self._prepared:
            self._prepared[segment.last] = _states(made.method, self.base, made.statistics)
        part = _SegmentReplay(self.history, matrices, made, self._prepared[segment.last])
        now = matrices.copy()
        matrices.put_back(self.base.weights)
        matrices.measure = partial(curvature_factors, self.base.lm, self.base.sites, made.statistics)
        part.call("on_train_start")
        matrices.put_back(now)
        if begun and made.method.saved:
            remember_logged(self.history, made.method, part.states, part.weights, left_out, begun)
        return part


class _SegmentReplay:
    """Batches that were edited in one way."""

    def __init__(self, history: EditHistory, matrices: Matrices, made: Recipe, states: Mapping[str, State]) -> None:
        self.history, self.matrices = history, matrices
        self.method, self.callbacks = made.method, made.callbacks
        self.weights = list(matrices.weights)
        self.states = MethodStates([states[name] for name in matrices.names], self.weights)
        names = zip(matrices.names, self.weights, strict=True)
        self.optimizer = LayerwiseEdit(
            [{"params": [weight], "name": name} for name, weight in names], before_update=self._show
        )
        # What was logged is solved as it was asked, a retry's stronger regulariser included.
        self.guard = Guard(GuardSettings(action="stop", max_norm_ratio=math.inf))
        self.loop = cast(Any, Loop([self.optimizer]))

    def edit(self, entry: Entry, left_out: frozenset[str]) -> None:
        """Edit a batch again, but for some cases."""
        rows = kept_rows(entry, left_out)
        tensors, names = self.history.tensors(entry), self.matrices.names
        if not len(rows) or not tensors:  # nothing is left of it, or a guard had skipped it
            return
        batch = _LoggedBatch(entry, self.weights, names, [_rows(tensors, name, rows) for name in names])
        if not entry.ranks:  # the run put the weights back, but kept the keys in mind
            remember(batch, self.method, self.states)
            return
        edit_batch(batch, self.method, self.states, self.optimizer, self.guard)
        self.call("on_train_batch_end")

    def _show(self, layer: int) -> None:
        for callback in self.callbacks:
            callback.on_before_optimizer_step(self.loop, cast(Any, self.matrices), self.optimizer)

    def call(self, hook: str) -> None:
        """Call a hook of every callback."""
        for callback in self.callbacks:
            extra = (None, None, 0) if hook == "on_train_batch_end" else ()
            getattr(callback, hook)(self.loop, self.matrices, *extra)


def _rows(tensors: Mapping[str, Tensor], name: str, rows: Tensor) -> Solved:
    remembered = tensors.get(f"remembered/{name}")
    return Solved(
        tensors[f"keys/{name}"][rows],
        tensors[f"residuals/{name}"][rows],
        None if remembered is None else remembered[rows],
    )
