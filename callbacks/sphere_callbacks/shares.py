"""How much of each update lies in the principal directions of the weight it changes, weight by weight."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from sphere_callbacks._base import WeightCallback, log_values
from sphere_callbacks._weights import stack
from sphere_callbacks.functional import principal_share
from sphere_callbacks.functional._checks import as_matrix
from sphere_callbacks.functional.projection import count_directions, leading_directions


class Nested(NamedTuple):
    """Principal directions for several ratios; each set begins the next one.

    Attributes:
        directions: Orthonormal columns ``[d, r]``, those of the largest ratio.
        counts: How many of them each ratio takes.
    """

    directions: Tensor
    counts: list[int]


def nested_directions(weight: Tensor, ratios: Sequence[float]) -> Nested:
    """Find the principal directions of a weight for several ratios at the cost of one.

    Args:
        weight: Tensor of shape ``[n, d]``, floating and finite.
        ratios: Shares of the eigenvalue sum, each in ``[0, 1)``.

    Example:
        >>> nested_directions(torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0])), [0.2, 0.6]).counts
        [1, 3]
    """
    directions, values = leading_directions(weight, max(ratios))
    return Nested(directions, [count_directions(values, ratio, directions.shape[1]) for ratio in ratios])


class PrincipalShares(WeightCallback):
    r"""Measure where each update points: into the principal directions, or past them.

    SPHERE weakens the part of an update that lies in the principal directions, so it can do no more than this share
    allows. A random update has a share of ``r / d_in`` there. An update is looked at when its gradient is ready and
    left alone; callbacks that stand before this one have changed it already, those after it have not.

    Logged for each batch, for each weight as ``.../{name}`` and as the mean over weights without it:
        - ``shares/update_{ratio}``: share of the squared norm of the update in the principal directions of the weight
          as it is; ``shares/start_{ratio}`` the same in those of the weight at the start of the fit;
        - ``shares/chance_{ratio}``: what a random update would have, ``r / d_in``, now;
        - ``shares/accumulated_{ratio}``: share of the accumulated change :math:`W - W_0` in the directions of the
          start;
        - ``shares/drift``: norm of the accumulated change by the norm of :math:`W_0`.

    A weight with NaN or infinity has no directions: NaN is logged and a warning given once.

    Cost of one update of a ``[n, d]`` weight: ``2 n d min(n, d)`` flops for the Gram matrix, about ``9 min(n, d)^3``
    for its eigenvectors and ``6 n d r`` for each ratio. A copy of each weight and its first directions are held.

    Args:
        ratios: Shares of the eigenvalue sum, each in ``[0, 1)``; ``None`` stands for ``[0.1, 0.5, 0.9]``.
        modules: Shell-style pattern for the names of the weights; ``None`` takes every floating matrix.

    Raises:
        ValueError: If a ratio is out of range or there is none.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> shares = PrincipalShares(ratios=[0.5], modules="*down_proj*")
        >>> trainer = Trainer(callbacks=[shares], logger=False, enable_checkpointing=False, accelerator="cpu")
    """

    def __init__(self, ratios: list[float] | None = None, modules: str | None = None) -> None:
        super().__init__(modules)
        ratios = [0.1, 0.5, 0.9] if ratios is None else ratios
        if not isinstance(ratios, Sequence) or not ratios or any(not 0 <= ratio < 1 for ratio in ratios):
            raise ValueError(f"`PrincipalShares(ratios={ratios})` must be ratios in [0, 1), such as [0.5].")
        self.ratios = list(ratios)
        self._origin: dict[str, Tensor] = {}
        self._start: dict[str, Nested] = {}
        self._measured: dict[str, Tensor] = {}
        self._warned: set[str] = set()

    @override
    @torch.no_grad()
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Keep the weights that changes are counted from."""
        super().on_train_start(trainer, pl_module)
        self._start, self._measured = {}, {}
        self._record(trainer, pl_module)

    @override
    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", optimizer: Optimizer
    ) -> None:
        """Look at the gradients that are ready."""
        for weight in self._with_grad(optimizer, pl_module):
            self._require_recorded(weight.name, self._start)
            now = self._nested(weight.name, weight.weight)
            self._measured |= self._shares("update", weight.name, weight.grad, now)
            self._measured |= self._shares("start", weight.name, weight.grad, self._start[weight.name])
            for ratio, count in zip(self.ratios, now.counts, strict=True):
                chance = torch.where(now.directions.isnan().any(), torch.nan, count / weight.weight.shape[1])
                self._measured[f"shares/chance_{ratio:g}/{weight.name}"] = chance

    @override
    @torch.no_grad()
    def on_train_batch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", *_: Any, **__: Any) -> None:
        """Measure the accumulated change and log."""
        for weight in self._weights:
            origin = self._origin[weight.name]
            change = weight.weight - origin
            self._measured |= self._shares("accumulated", weight.name, change, self._start[weight.name])
            self._measured[f"shares/drift/{weight.name}"] = as_matrix(change).norm() / as_matrix(origin).norm()
        log_values(trainer, pl_module, self._measured | self._means())
        self._measured = {}

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the weights of the start."""
        return {"origin": dict(self._origin)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the start of the interrupted fit."""
        super().load_state_dict(state_dict)
        self._origin = dict(state_dict["origin"])

    @override
    def _reset(self) -> None:
        self._origin, self._start, self._measured, self._warned = {}, {}, {}, set()

    @override
    def _record(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        for weight in self._weights:
            if weight.name not in self._start:
                origin = self._origin.get(weight.name, weight.weight).to(weight.weight.device, copy=True)
                self._origin[weight.name] = origin
                self._start[weight.name] = self._nested(weight.name, origin)

    def _nested(self, name: str, weight: Tensor) -> Nested:
        """Find the directions of a weight; those of a weight with NaN are NaN."""
        if self._has_directions(name, weight, self._warned):
            return nested_directions(weight, self.ratios)
        return Nested(weight.new_full((weight.shape[1], 1), torch.nan, dtype=torch.float32), [1] * len(self.ratios))

    def _shares(self, kind: str, name: str, update: Tensor, basis: Nested) -> dict[str, Tensor]:
        """Share of an update in the directions of each ratio."""
        return {
            f"shares/{kind}_{ratio:g}/{name}": principal_share(update, basis.directions[:, :count])
            for ratio, count in zip(self.ratios, basis.counts, strict=True)
        }

    def _means(self) -> dict[str, Tensor]:
        """Mean of each quantity over the weights."""
        groups: dict[str, list[Tensor]] = {}
        for name, value in self._measured.items():
            kind = "/".join(name.split("/")[:2])
            groups.setdefault(kind, []).append(value.float())
        return {kind: stack(values).mean() for kind, values in groups.items()}
