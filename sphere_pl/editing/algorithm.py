"""The algorithm: how one edit batch changes the weights, layer by layer."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sphere_callbacks import LayerwiseEdit
from sphere_callbacks.functional import exact_products
from sphere_pl.editing.guard import Guard
from sphere_pl.editing.problem import BatchProblem
from sphere_pl.editing.states import MethodStates
from sphere_pl.methods.base import Method, State
from sphere_pl.methods.functional import room_of_taken_keys
from sphere_pl.methods.problem import LayerProblem
from sphere_pl.model.families import EditSite
from sphere_pl.process.failures import doing


@doing("editing layer by layer")
def edit_batch(
    batch: BatchProblem, method: Method, states: MethodStates, optimizer: LayerwiseEdit, guard: Guard
) -> bool:
    """Edit one batch: Algorithm 1 of SPHERE (arXiv 2510.01172) from the target values on.

    Every run goes through here: training, a saved run that is solved again, and the benchmarks.

    Args:
        batch: What is asked of each matrix, from the weights as they are at that moment.
        method: Finds a matrix's update from that.
        states: What the method remembers of each matrix.
        optimizer: Walks the matrices, shallow to deep. What hangs on it sees each update in `.grad` before it is
            applied: Lightning's `on_before_optimizer_step`, or `before_update`.
        guard: Retries an update that would break the model, or skips the batch.

    Returns:
        Whether the batch was edited; if not, weights and states are as they were.
    """

    @doing("solving for an update")
    def solve_layer() -> None:
        layer = optimizer.active_group
        problem = batch.at(layer)  # keys K [n, d_in] and residuals R [n, d_out]
        with states.lent(layer) as state:
            problem.row_weights = make_room(method, problem, state)
            update = guard.solve(method, problem, state)  # Δ [d_out, d_in]
        batch.weights[layer].grad = -update  # SparseProjection on its way: Δ ← Δ - α (Δ U) Uᵀ

    with guard.all_or_nothing(batch) as attempt:
        optimizer.step(solve_layer)  # W ← W + Δ; the next layer sees it
    if attempt.kept:
        remember(batch, method, states)
    return attempt.kept


def make_room(method: Method, problem: LayerProblem, state: State) -> Tensor | None:
    """How much each request counts where earlier ones have nearly its key and hold it back; None if none do."""
    taken = problem.taken()
    if taken is None:
        return None
    keys, in_the_way = taken
    with exact_products():
        overlap = method.overlap(torch.cat([problem.keys, keys]), state)
    return None if overlap is None else room_of_taken_keys(overlap, in_the_way)


def layer_walk(sites: Sequence[EditSite], weights: Sequence[Tensor] | nn.ParameterList) -> LayerwiseEdit:
    """The optimizer that walks some matrices: one group for each, under its Hugging Face name; the model follows.

    Args:
        sites: Where the matrices are in the model, shallow to deep.
        weights: Their float32 copies `[d_out, d_in]`, which are edited.
    """
    groups = [
        {"params": [weight], "name": site.name, "fan_in_fan_out": False}
        for site, weight in zip(sites, weights, strict=True)
    ]
    return LayerwiseEdit(groups, after_update=lambda layer: sites[layer].write(weights[layer]))


@doing("remembering the batch's keys")
def remember(batch: BatchProblem, method: Method, states: MethodStates) -> None:
    """Let the method take an edited batch into what it knows of each matrix."""
    with exact_products():
        for layer, edited in batch.edited():
            states.update(layer, partial(method.remember, edited))
