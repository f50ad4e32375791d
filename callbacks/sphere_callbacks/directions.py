"""Follow the principal directions of the weights from batch to batch."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from typing_extensions import override

from sphere_callbacks._base import StartCallback, log_values
from sphere_callbacks._weights import EditedWeight, stack
from sphere_callbacks.functional import leading_directions, subspace_overlap


class PrincipalDirections(StartCallback):
    """Measure how many principal directions a weight has and how far they have turned since the start of the fit.

    Logged every ``every_n_batches`` batches, as the mean over weights:
        - ``principal/rank``: directions whose share of the eigenvalue sum exceeds ``cumulative_ratio``;
        - ``principal/top_share``: share of the leading direction alone;
        - ``principal/overlap``: mean squared cosine between the directions now and those at the start
          (:func:`sphere_callbacks.functional.subspace_overlap`), 1 if they span the same space;
        - ``principal/overlap_chance``: the overlap that two random subspaces of these sizes would have on average.

    A weight with NaN or infinity has no directions: NaN is logged and a warning given once. A weight of zeros has none
    either, which makes the means NaN as long as it is one: leave it out with ``modules``.

    Cost of one measurement of a ``[n, d]`` weight: that of finding the directions once, ``2 n d min(n, d)`` flops for
    the Gram matrix and about ``9 min(n, d)^3`` for its eigenvectors; the directions of the start, ``[d, r]``, are
    held.

    Args:
        cumulative_ratio: Share of the eigenvalue sum that the directions exceed, in ``[0, 1)``.
        every_n_batches: Batches between measurements.
        modules: Shell-style pattern for the names of the weights; ``None`` takes every floating matrix.

    Raises:
        ValueError: If an argument is out of range.
        MisconfigurationException: At the start of a fit that resumes one with another ratio.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> directions = PrincipalDirections(cumulative_ratio=0.5, every_n_batches=10)
        >>> trainer = Trainer(callbacks=[directions], logger=False, enable_checkpointing=False, accelerator="cpu")
    """

    def __init__(self, cumulative_ratio: float = 0.5, every_n_batches: int = 1, modules: str | None = None) -> None:
        super().__init__(every_n_batches, modules)
        if not 0 <= cumulative_ratio < 1:
            raise ValueError(f"`PrincipalDirections(cumulative_ratio={cumulative_ratio})` must lie in [0, 1).")
        self.cumulative_ratio = cumulative_ratio
        self._warned: set[str] = set()

    @override
    @torch.no_grad()
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Find the directions that later ones are compared with."""
        super().on_train_start(trainer, pl_module)
        self._record(trainer, pl_module)

    @override
    @torch.no_grad()
    def on_train_batch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", *_: Any, **__: Any) -> None:
        """Measure and log."""
        if self._due():
            means = stack([self._measure(weight) for weight in self._weights]).mean(dim=0)
            names = ("principal/rank", "principal/top_share", "principal/overlap", "principal/overlap_chance")
            log_values(trainer, pl_module, dict(zip(names, means, strict=True)))

    @override
    def _reset(self) -> None:
        super()._reset()
        self._warned = set()

    @override
    def _arguments(self) -> dict[str, Any]:
        return {"cumulative_ratio": self.cumulative_ratio}

    @override
    def _record(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        for weight in self._weights:
            if weight.name in self._start:
                self._start[weight.name] = self._start[weight.name].to(weight.weight.device)
            elif self._has_directions(weight.name, weight.weight, self._warned):
                self._start[weight.name] = leading_directions(weight.weight, self.cumulative_ratio)[0]

    def _measure(self, weight: EditedWeight) -> Tensor:
        """Return rank, leading share, overlap and its chance level for one weight."""
        if not self._has_directions(weight.name, weight.weight, self._warned) or weight.name not in self._start:
            return weight.weight.new_full((4,), torch.nan, dtype=torch.float32)
        start = self._start[weight.name]
        now, values = leading_directions(weight.weight, self.cumulative_ratio)
        chance = max(start.shape[1], now.shape[1]) / now.shape[0]
        rank, share = values.new_tensor(float(now.shape[1])), values[0] / values.sum()
        return torch.stack([rank, share, subspace_overlap(start, now), values.new_tensor(chance)]).float()
