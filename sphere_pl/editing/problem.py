"""One edit batch as a method sees it: matrix by matrix, measured on the model as it is at that moment.

Shapes: `n` requests, `d` hidden size.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from sphere_pl.data.request import EditBatch, EditRequest
from sphere_pl.editing.asked import Asked, ask_once
from sphere_pl.editing.distributed import Shares
from sphere_pl.editing.likelihood import TargetLikelihood
from sphere_pl.editing.output_targets import optimize_outputs
from sphere_pl.editing.representations import SubjectStream
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editing.targets import Targets, optimize_targets
from sphere_pl.methods.base import Method
from sphere_pl.methods.functional import spread_residual
from sphere_pl.methods.problem import LayerProblem
from sphere_pl.model.families import EditSite
from sphere_pl.model.language_model import LanguageModel


class Solved(NamedTuple):
    """What a method solved for one matrix and batch, as the edit log keeps it.

    Attributes:
        keys: Keys given to `update`, `[n, d_in]`.
        residuals: Residuals given to it, `[n, d_out]`.
        remembered: Keys that `remember` took into the state, `[n, d_in]`; None if it took nothing.
    """

    keys: Tensor
    residuals: Tensor
    remembered: Tensor | None = None


class BatchProblem(ABC):
    """One edit batch: what `edit_batch` needs of it, wherever it comes from.

    Attributes:
        weights: The matrices to edit, shallow to deep, float32 `[d_out, d_in]` each.
        case_ids: The records of the batch.
        start: How many requests of the stream come before it.
    """

    weights: Sequence[Tensor]
    case_ids: list[str]
    start: int

    @abstractmethod
    def at(self, layer: int) -> LayerProblem:
        """What the batch asks of matrix number `layer`; the shallower ones have been edited."""

    @abstractmethod
    def edited(self) -> Iterator[tuple[int, LayerProblem]]:
        """Each matrix's number with what is measured on the edited model, for the method's memory."""


class Posing(NamedTuple):
    """How batches are put to a method.

    Attributes:
        method: The method.
        sites: Where the matrices are in the model, shallow to deep.
        contexts: Context templates; the first is the empty one.
        max_tokens: Tokens in one forward pass.
        shares: Which processes share the work.
        ask: In which phrasings a batch's requests are asked, and which of them share a target.
    """

    method: Method
    sites: Sequence[EditSite]
    contexts: Sequence[str]
    max_tokens: int
    shares: Shares
    ask: Callable[[EditBatch], Asked] = ask_once


class ModelBatch(BatchProblem):
    """A batch that is measured on the language model, by all processes of a run together.

    Args:
        lm: The language model.
        weights: The float32 matrices that it follows.
        batch: The requests.
        posing: How they are put to the method.
        find_targets: Finds the target values of the batch, as `optimize_targets` does. Called at once if the method
            needs them, since they belong to the model as it is before the batch.

    Attributes:
        places: Where in the stream the batch lies.
        targets: The target values; None for methods that need none.
        remembered: Keys that the method has asked for after the edit, by matrix.
    """

    def __init__(
        self,
        lm: LanguageModel,
        weights: Sequence[Tensor],
        batch: EditBatch,
        posing: Posing,
        find_targets: Callable[["ModelBatch"], Targets],
    ) -> None:
        self.lm, self.weights, self.batch, self.posing = lm, weights, batch, posing
        self.asked = posing.ask(batch)
        self.share = self.asked.share(posing.shares)  # of this process
        self.case_ids, self.start = [request.case_id for request in batch.requests], batch.start
        self.places = list(batch.places)
        self.targets = find_targets(self) if posing.method.needs_targets else None
        self._asked: list[_ModelProblem] = []
        self.remembered: dict[int, Tensor] = {}

    def optimize_targets(self, settings: TargetSettings) -> Targets:
        """Optimise this process's share of the target values, and gather all."""
        posing, settings = self.posing, replace(settings, max_tokens=self.posing.max_tokens)
        phrasings, joint = self.share.every_phrasing, self.share.joint
        keys = self._keys_to_align(phrasings) if settings.align else None
        if any(site.output.norm is not None for site in posing.sites):
            part = optimize_outputs(self.lm, phrasings, posing.contexts, posing.sites, settings, joint, keys)
        else:
            layer = posing.sites[-1].layer
            part = optimize_targets(self.lm, phrasings, posing.contexts, layer, settings, joint, keys)
        return Targets(*(self.asked.of_batch(self.asked.together(each, posing.shares)) for each in part))

    def _keys_to_align(self, phrasings: Sequence[EditRequest]) -> Tensor:
        """Keys of plain prompts at the deepest matrix, on the model as it is before the batch, `[P, d_in]`."""
        site, most = self.posing.sites[-1], self.posing.max_tokens
        return SubjectStream(self.lm, phrasings, [""], site.layer, most, None).keys(site)

    def at(self, layer: int) -> LayerProblem:
        """See `BatchProblem`."""
        problem = _ModelProblem(self, layer)
        if self.targets is not None:
            problem.measure()  # here, and not where the method asks: solves are exact, the model runs as it always does
        self._asked[layer:] = [problem]
        return problem

    def edited(self) -> Iterator[tuple[int, LayerProblem]]:
        """See `BatchProblem`. The model runs only if keys are asked for."""
        coming = self.stream.all_keys(self.posing.sites) if self.targets is not None else iter(())
        found: list[Tensor] = []

        def keys_of(layer: int) -> Tensor:
            while len(found) <= layer:
                found.append(self.together(next(coming)))
            return found[layer]

        for layer in range(len(self.weights)):
            yield layer, _EditedProblem(self, layer, keys_of)

    @cached_property
    def stream(self) -> SubjectStream:
        """This process's share of the prompts, after all contexts, on their way through the blocks."""
        posing = self.posing
        return SubjectStream(
            self.lm,
            self.share.every_phrasing,
            posing.contexts,
            posing.sites[0].layer,
            posing.max_tokens,
            posing.method.plain_share,
        )

    @cached_property
    def likelihood(self) -> TargetLikelihood:
        """How likely the model finds the targets after the plain prompts."""
        posing = self.posing
        return TargetLikelihood(
            self.lm, self.asked.of_the_batch, posing.sites, posing.max_tokens, posing.method.end_of_text
        )

    def together(self, part: Tensor) -> Tensor:
        """The rows of the whole batch, `[n, ...]`, from every process's share, where each phrasing has a row.

        Each request gets the mean over its phrasings, and over the requests that share its target.
        """
        return self.asked.of_batch(self.asked.joint.shared(self.of_all(part)))

    def of_all(self, part: Tensor) -> Tensor:
        """The same of all requests that are asked, `[N, ...]`, those of earlier batches among them."""
        return self.asked.together(self.share.joint.per_request(part), self.posing.shares)

    def scalars(self, settings: TargetSettings) -> dict[str, Tensor | float]:
        """What the optimisation reached at its last look, mean over the batch."""
        if self.posing.method.retrieval is not None:
            return {}  # the model was not asked
        return self.likelihood.scalars() if self.targets is None else self.targets.scalars(settings)

    def solved(self) -> list[Solved]:
        """What the method solved for each matrix; nothing for a method that solves for no targets."""
        if self.targets is None:
            return []
        return [Solved(each.keys, each.residuals, self.remembered.get(each.layer)) for each in self._asked]


class _ModelProblem(LayerProblem):
    """One matrix of a `ModelBatch`, while it is edited."""

    def __init__(self, batch: ModelBatch, layer: int) -> None:
        super().__init__(batch.weights[layer].detach(), batch.posing.sites[layer].name)
        self.batch, self.layer = batch, layer

    def __len__(self) -> int:
        """How many there are to fit: each phrasing on its own where there are no target values."""
        return len(self.batch.case_ids if self.batch.targets is not None else self.batch.asked.of_the_batch)

    def _keys(self) -> Tensor:
        return self._measured[0]

    def _residuals(self) -> Tensor:
        return self._measured[1]

    def taken(self) -> tuple[Tensor, Tensor] | None:
        """See `LayerProblem`."""
        return self._measured[2] if self.batch.targets is not None else None

    def measure(self) -> None:
        """Run the model for keys and residuals, if that has not been done."""
        _ = self._measured

    @cached_property
    def _measured(self) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """Keys, what is missing of the targets, shared over the layers that are left, and keys that are taken."""
        batch, sites = self.batch, self.batch.posing.sites
        if batch.targets is None:
            raise RuntimeError(
                f"{type(batch.posing.method).__name__} asks for keys and residuals but says `needs_targets = False`: "
                "no target values were found for the batch. Set it to True."
            )
        found = batch.of_all(batch.stream.keys(sites[self.layer]))
        keys = batch.asked.of_batch(batch.asked.joint.shared(found))
        residuals = self._before_norm(batch.targets) if batch.targets.outputs.shape[1] else self._spread(batch.targets)
        return keys, residuals.to(self.weight.device), batch.asked.taken(found)

    def _spread(self, targets: Targets) -> Tensor:
        """What is missing of the target values, shared over the layers that are left and divided by the factor."""
        batch, sites = self.batch, self.batch.posing.sites
        missing = targets.values - batch.together(batch.stream.values(sites[-1].layer))  # [n, d]
        residuals = spread_residual(missing, len(sites) - self.layer)
        scale = sites[self.layer].output.scale
        return residuals if scale == 1.0 else residuals / scale

    def _before_norm(self, targets: Targets) -> Tensor:
        """What the matrix's output lacks, where a norm lies between it and the stream.

        Each matrix is asked for its own part of what was optimised. The last one makes good what the others left or
        moved besides, as nearly as its norm lets it.
        """
        batch, site = self.batch, self.batch.posing.sites[self.layer]
        states, outputs = (batch.together(part) for part in batch.stream.outputs(site))
        wanted = targets.outputs[:, self.layer]
        if self.layer == targets.outputs.shape[1] - 1:
            others = states - site.output.gain(outputs)  # what the stream holds without this matrix
            wanted = site.output.nearest_output(targets.values - others, near=wanted)
        return wanted - outputs

    def loss_and_gradient(self, weight: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        self.batch.likelihood.advance(self.layer)
        return self.batch.likelihood.loss_and_gradient(weight, chosen)

    def features(self) -> tuple[Tensor, Tensor]:
        self.batch.likelihood.advance(self.layer)
        return self.batch.likelihood.features()


class _EditedProblem(_ModelProblem):
    """The same matrix after the batch: its keys are those of the edited model."""

    def __init__(self, batch: ModelBatch, layer: int, keys_of: Callable[[int], Tensor]) -> None:
        super().__init__(batch, layer)
        self._keys_of = keys_of

    def _keys(self) -> Tensor:
        keys = self._keys_of(self.layer)
        self.batch.remembered[self.layer] = keys
        return keys

    def _residuals(self) -> Tensor:
        raise RuntimeError("Residuals belong to the batch before it is edited; a method remembers its keys.")
