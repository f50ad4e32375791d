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
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from torch import Tensor, nn

from sphere_callbacks import LayerwiseEdit, Loop, SparseProjection
from sphere_pl.editing.algorithm import edit_batch, remember
from sphere_pl.editing.guard import Guard, GuardSettings
from sphere_pl.editing.moments import SecondMoment, StatisticsSettings, second_moments
from sphere_pl.editing.problem import BatchProblem, Solved
from sphere_pl.editing.states import MethodStates
from sphere_pl.errors import UserError
from sphere_pl.history.log import EditHistory, Entry
from sphere_pl.history.rebuild import rebuild
from sphere_pl.history.saved import BaseModel, SavedRun
from sphere_pl.methods.base import Method, State
from sphere_pl.methods.problem import KnownProblem, LayerProblem
from sphere_pl.progress import untracked

_TOLERANCE = 1e-2  # of the accumulated change's norm; another method or projection misses by far more


class Recipe(NamedTuple):
    """How a run turned keys and residuals into updates.

    Attributes:
        method: The method.
        callbacks: What its updates passed through, in this order.
        statistics: Which text its second moments come from.
    """

    method: Method
    callbacks: list[Callback]
    statistics: StatisticsSettings


def recipe(run: SavedRun) -> Recipe:
    """Read a run's method and callbacks from its config.yaml.

    Raises:
        UserError: If it has none, or names something that cannot be built.
    """
    model = run.section("model")
    if "method" not in model:
        raise UserError(f"{run.folder} has no config.yaml with the run's method: edits cannot be taken out.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--method", type=Method)
    parser.add_argument("--statistics", type=StatisticsSettings)
    parser.add_argument("--callbacks", type=list[Callback])
    parser.add_class_arguments(SparseProjection, "projection")
    given = {
        "method": model["method"],
        "statistics": model.get("statistics") or {},
        "callbacks": run.section("trainer").get("callbacks") or [],
        "projection": run.section("projection"),
    }
    try:
        built = parser.instantiate_classes(parser.parse_object(given))
    except Exception as error:  # importing and building a class raises what it likes
        raise UserError(f"{run.folder / 'config.yaml'} could not be read: {error}") from error
    return Recipe(built.method, [*filter(_acts_on_updates, built.callbacks), built.projection], built.statistics)


def _acts_on_updates(callback: Callback) -> bool:
    return type(callback).on_before_optimizer_step is not Callback.on_before_optimizer_step


def find_cases(history: EditHistory, case_ids: Collection[str], last: int) -> list[Entry]:
    """The batches that hold some cases.

    Raises:
        UserError: If a case is in none.
    """
    unknown = sorted(set(case_ids) - {case for entry in history.entries[:last] for case in entry.case_ids})
    if unknown:
        some = [case for entry in history.entries[:last] for case in entry.case_ids][:10]
        raise UserError(
            f"--without {unknown[0]}: no edit of {history.folder} has this case id. Its first are {', '.join(some)}."
        )
    return [entry for entry in history.entries[:last] if set(entry.case_ids) & set(case_ids)]


def check_without(run: SavedRun, case_ids: Collection[str], last: int) -> list[Entry]:
    """Refuse what `solve_without` cannot do, before anything is loaded; returns the batches that lose a row.

    Raises:
        UserError: If a case is unknown, the method has no keys and residuals, or the log lacks them.
    """
    _check_solvable(run)
    return find_cases(run.history, case_ids, last)


def solve_without(run: SavedRun, base: BaseModel, case_ids: Collection[str], last: int) -> dict[str, Tensor]:
    """Solve the batches up to entry `last` again without some cases.

    Before that, the batches up to the first one that loses a row are solved with all their rows, and must give what the
    run logged.

    Args:
        run: The run.
        base: Its unedited model, as loaded.
        case_ids: The cases to leave out.
        last: Number of the last entry to solve.

    Returns:
        The matrices with which the run would have gone on, float32 `[d_out, d_in]`, by name.

    Raises:
        UserError: If a case is unknown, the method has no keys and residuals, the log lacks them, or what was logged
            cannot be solved again.
    """
    history = run.history
    first = check_without(run, case_ids, last)[0].number
    made = recipe(run)
    if not made.method.needs_targets:
        raise _no_system(run)
    states = _states(made.method, base, made.statistics)
    again = _Replay(history, base.weights, made, states).run(frozenset(), first)
    _check_same(again, rebuild(base.weights, history, first), base.weights, run)
    return _Replay(history, base.weights, recipe(run), states).run(frozenset(case_ids), last)


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


def _check_solvable(run: SavedRun) -> None:
    header = run.history.header
    if not header.solvable:
        raise _no_system(run)
    for entry in run.history.entries:
        if not entry.requests and (entry.file is not None or not entry.complete):
            raise UserError(
                f"The weights of {run.folder} were changed between batches (entry {entry.number} of its log): what "
                "the batches after it would have given without the edits cannot be solved."
            )


def _no_system(run: SavedRun) -> UserError:
    return UserError(
        f"{run.folder} was edited with {run.history.header.method}, and its log holds no keys and residuals to solve "
        "again: either the method optimises the weights on each whole batch (FT, LocFT-BF, UltraEdit), or the run had "
        "--edit_log changes. Export the state before the edit with --at, or run `fit` again on data without it."
    )


def _check_same(
    again: Mapping[str, Tensor], logged: Mapping[str, Tensor], base: Mapping[str, Tensor], run: SavedRun
) -> None:
    for name, weight in logged.items():
        moved = float((weight - base[name]).norm()) + 1e-6 * float(base[name].norm())
        missed = float((again[name] - weight).norm())
        if not missed <= _TOLERANCE * moved:
            raise UserError(
                f"Solving {run.folder} again does not give the change of {name} that it logged (off by "
                f"{missed / moved:.1%}): something that config.yaml does not name acted on its updates, such as a "
                "callback of your own or a retry with another regulariser. Edits cannot be taken out of this run."
            )


class _Matrices(nn.Module):
    """The weights that are edited again."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = list(weights)
        self.weights = nn.ParameterList(nn.Parameter(weight.clone()) for weight in weights.values())

    def copy(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in zip(self.names, self.weights, strict=True)}

    @torch.no_grad()
    def put_back(self, weights: Mapping[str, Tensor]) -> None:
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


class _Replay:
    """The batches of a log, edited again, with the run's callbacks around the optimizer."""

    def __init__(
        self, history: EditHistory, base: Mapping[str, Tensor], made: Recipe, states: Mapping[str, State]
    ) -> None:
        self.history = history
        self.method = made.method
        self.callbacks = made.callbacks
        self.matrices = _Matrices(base)
        self.weights = list(self.matrices.weights)
        self.states = MethodStates([states[name] for name in self.matrices.names], self.weights)
        names = zip(self.matrices.names, self.weights, strict=True)
        self.optimizer = LayerwiseEdit(
            [{"params": [weight], "name": name} for name, weight in names], before_update=self._show
        )
        # What was logged is solved as it was asked, a retry's stronger regulariser included.
        self.guard = Guard(GuardSettings(action="stop", max_norm_ratio=math.inf))
        self.loop = cast(Any, Loop([self.optimizer]))

    def run(self, left_out: frozenset[str], last: int) -> dict[str, Tensor]:
        """Edit entries 1 to `last`."""
        entries = self.history.entries[:last]
        returns = {entry.base for entry in entries if entry.base != entry.number - 1}
        states = {0: self.matrices.copy()}
        self._each("on_train_start")
        for entry in entries:
            if entry.base != entry.number - 1:
                self.matrices.put_back(states[entry.base])
            elif entry.requests:
                self._batch(entry, left_out)
            if entry.number in returns:
                states[entry.number] = self.matrices.copy()
        return self.matrices.copy()

    def _batch(self, entry: Entry, left_out: frozenset[str]) -> None:
        rows = torch.tensor([i for i, case in enumerate(entry.case_ids) if case not in left_out], dtype=torch.long)
        if not len(rows):
            return
        tensors, names = self.history.tensors(entry), self.matrices.names
        batch = _LoggedBatch(entry, self.weights, names, [_rows(tensors, name, rows) for name in names])
        if not entry.ranks:  # the run put the weights back, but kept the keys in mind
            remember(batch, self.method, self.states)
            return
        edit_batch(batch, self.method, self.states, self.optimizer, self.guard)
        self._each("on_train_batch_end")

    def _show(self, layer: int) -> None:
        for callback in self.callbacks:
            callback.on_before_optimizer_step(self.loop, cast(Any, self.matrices), self.optimizer)

    def _each(self, hook: str) -> None:
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
