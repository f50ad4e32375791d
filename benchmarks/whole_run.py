"""Editing as a whole: the literal pipeline on a few edits against ours, after the same preparation.

Both edit the same stream in batches with AlphaEdit and SPHERE and the default run's settings. The literal one works as
published: a target at a time with full forwards, a full forward for every key and value, dense solves in d_in
dimensions, and an eigendecomposition in d_in dimensions for every projection. Loading, second moments and evaluation
are left out of both.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, cast

import lightning as L
import torch
from torch import Tensor
from torch.profiler import profile

from benchmarks.algebra import made_moment
from benchmarks.language_models import DEFAULT, contexts_of, model_of, titled
from benchmarks.measure import Measurement, alternate, device_name, relative_error, seconds
from benchmarks.representations import literal_key, literal_value
from benchmarks.targets import literal_target
from sphere_callbacks import LayerwiseEdit
from sphere_callbacks.functional import principal_directions, project_out
from sphere_pl.data.datamodule import EditDataModule
from sphere_pl.data.request import EditBatch, EditRequest
from sphere_pl.editing.algorithm import edit_batch
from sphere_pl.editing.distributed import Shares
from sphere_pl.editing.guard import Guard, GuardSettings
from sphere_pl.editing.kept_moments import second_moments
from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.editing.problem import ModelBatch, Posing
from sphere_pl.editing.states import MethodStates
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.methods import AlphaEdit
from sphere_pl.methods.base import State
from sphere_pl.model.batching import MOST_TOKENS
from sphere_pl.model.families import EditSite
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.loading import Dtype
from sphere_pl.model.products import fast_products
from sphere_pl.process.devices import default_device
from sphere_pl.progress import untracked

LAYERS = [2, 3, 4, 5, 6]
RIDGE, THRESHOLD, RATIO, STRENGTH = 10.0, 0.02, 0.5, 0.5
TOLERANCE = 1e-3
ASKED = 0.3  # seconds an edit on an H100, with LLaMA3-8B's shapes
SETTINGS = TargetSettings(learning_rate=0.5, clamp=4.0, weight_decay=1e-3, kl_weight=0.3, stop_loss=0.4)


class _Problem(NamedTuple):
    lm: LanguageModel
    batches: list[list[EditRequest]]
    contexts: list[str]
    weights: list[Tensor]
    moments: list[Tensor]

    def restore(self) -> list[EditSite]:
        """Put the unedited matrices back."""
        sites = self.lm.sites(LAYERS)
        for site, weight in zip(sites, self.weights, strict=True):
            site.write(weight)
        return sites


def whole_run(edits: int = 10, batch: int = 10, repeats: int = 1, model: str = DEFAULT) -> Measurement:
    """Seconds per edit; checked on two float32 edits first."""
    _check(_problem(model, "float32", 2, 2))
    problem = _problem(model, "bfloat16", edits, batch)
    plain, fast = alternate(lambda: literal(problem), lambda: ours(problem), repeats)
    name = f"editing as a whole, default settings, {edits} edits in batches of {batch}"
    return Measurement(titled(name, model), plain / fast, 10, None, fast / edits, device_name())


def step(batch: int = 100, repeats: int = 3, model: str = DEFAULT) -> Measurement:
    """Seconds per edit of one batch, ours alone, against `ASKED`; null spaces are found before."""
    problem, states = _warm(batch, model)
    with frozen(problem):
        times = sorted(seconds(lambda: edit(problem, states)) for _ in range(repeats))
    each = times[repeats // 2] / batch
    name = titled(f"one batch of {batch} with {len(problem.contexts)} contexts, by {ASKED} s an edit", model)
    return Measurement(name, ASKED / each, 1, None, each, device_name())


def profile_step(batch: int = 100, model: str = DEFAULT) -> str:
    """Where the time of one batch goes, operator by operator."""
    problem, states = _warm(batch, model)
    with frozen(problem), profile(acc_events=True) as seen:
        edit(problem, states)
    by = "self_cpu_time_total" if default_device().type == "cpu" else "self_device_time_total"
    return str(seen.key_averages().table(sort_by=by, row_limit=20))


def _warm(batch: int, model: str) -> tuple[_Problem, list[State]]:
    """One batch and its null spaces, edited once: the first time is not counted."""
    problem = _problem(model, "bfloat16", batch, batch)
    states = prepare(problem)
    edit(problem, states)
    return problem, states


def _check(problem: _Problem) -> None:
    """The same edited matrices as the literal pipeline's."""
    for found, expected, start in zip(ours(problem), literal(problem), problem.weights, strict=True):
        assert relative_error(found - start, expected - start) < TOLERANCE


def _problem(model: str, dtype: Dtype, edits: int, batch: int) -> _Problem:
    data = EditDataModule(offset=300, limit=edits)
    data.setup("fit")
    L.seed_everything(0, verbose=False)
    lm = model_of(model, dtype)
    sites = lm.sites(LAYERS)
    return _Problem(
        lm,
        [data.requests[start : start + batch] for start in range(0, edits, batch)],
        contexts_of(model, lm, 2 if model == DEFAULT else 5),
        [site.read() for site in sites],
        _moments(model, lm, sites),
    )


def _moments(model: str, lm: LanguageModel, sites: Sequence[EditSite]) -> list[Tensor]:
    """Second moments of the default model's own text; random weights have none that mean anything."""
    if model != DEFAULT:
        return [made_moment(site.read().shape[1]) for site in sites]
    found = second_moments(lm, sites, StatisticsSettings(), untracked)
    return [found[site.name].matrix.to(default_device()) for site in sites]


def prepare(problem: _Problem) -> list[State]:
    """Null spaces of all matrices."""
    method = AlphaEdit(RIDGE, THRESHOLD)
    return [method.initial_state(w, moment) for w, moment in zip(problem.weights, problem.moments, strict=True)]


def ours(problem: _Problem) -> list[Tensor]:
    """What a run does from the null spaces on."""
    with frozen(problem):
        return edit(problem, prepare(problem))


def frozen(problem: _Problem) -> AbstractContextManager[None]:
    """All that no edit changes laid out, once a run."""
    return fast_products(problem.lm, [site.module for site in problem.lm.sites(LAYERS)])


def edit(problem: _Problem, states: Sequence[State]) -> list[Tensor]:
    """What `SequentialEditor` does with SPHERE, without Lightning around it."""
    sites, method = problem.restore(), AlphaEdit(RIDGE, THRESHOLD)
    weights = [weight.clone() for weight in problem.weights]

    def project(layer: int) -> None:
        U = principal_directions(weights[layer], RATIO)
        weights[layer].grad = project_out(cast(Tensor, weights[layer].grad), U, STRENGTH)

    groups = [{"params": [weight]} for weight in weights]
    write = lambda layer: sites[layer].write(weights[layer])  # noqa: E731
    optimizer = LayerwiseEdit(groups, before_update=project, after_update=write)
    known, guard = MethodStates(states, weights), Guard(GuardSettings())
    posing = Posing(method, sites, problem.contexts, MOST_TOKENS, Shares())
    for requests in problem.batches:
        batch = ModelBatch(
            problem.lm, weights, EditBatch(tuple(requests)), posing, lambda batch: batch.optimize_targets(SETTINGS)
        )
        edit_batch(batch, method, known, optimizer, guard)
    return weights


def literal(problem: _Problem) -> list[Tensor]:
    """The published procedure, written plainly."""
    lm, sites = problem.lm, problem.restore()
    projectors = [_projector(moment) for moment in problem.moments]
    memories = [torch.zeros_like(moment) for moment in problem.moments]
    weights = [weight.clone() for weight in problem.weights]
    for requests in problem.batches:
        targets = torch.stack([literal_target(lm, each, problem.contexts, SETTINGS, LAYERS[-1]) for each in requests])
        for index, site in enumerate(sites):
            keys = _keys(lm, requests, problem.contexts, site)
            now = torch.stack([literal_value(lm, each, LAYERS[-1]) for each in requests])
            residuals = (targets - now) / (len(sites) - index)
            system = projectors[index] @ (keys.T @ keys + memories[index])
            system = system + RIDGE * torch.eye(len(system), device=system.device)
            update = torch.linalg.solve(system, projectors[index] @ keys.T @ residuals).T
            weights[index] += update @ _sphere(weights[index])
            site.write(weights[index])
        for index, site in enumerate(sites):
            keys = _keys(lm, requests, problem.contexts, site)
            memories[index] += keys.T @ keys
    return weights


def _keys(lm: LanguageModel, requests: Sequence[EditRequest], contexts: Sequence[str], site: EditSite) -> Tensor:
    return torch.stack([literal_key(lm, request, contexts, site) for request in requests])


def _projector(moment: Tensor) -> Tensor:
    """AlphaEdit's projector onto the null space, from a full singular value decomposition in double precision."""
    vectors, values, _ = torch.linalg.svd(moment.double())
    null = vectors[:, values < THRESHOLD]
    projector: Tensor = null @ null.T
    return projector.to(moment)


def _sphere(weight: Tensor) -> Tensor:
    """SPHERE's projector, of size d_in x d_in."""
    unit = weight / (weight.norm(dim=1, keepdim=True) + 1e-8)
    values, vectors = torch.linalg.eigh(unit.T @ unit / len(unit))
    rank = int((values.flip(0).cumsum(0) / values.sum() <= RATIO).sum()) + 1
    top = vectors[:, -rank:]
    projector: Tensor = torch.eye(len(values), device=weight.device) - STRENGTH * top @ top.T
    return projector
