"""RECT: keep only the entries of an update that change the weight most in proportion."""

from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from sphere_callbacks._base import WeightCallback, log_values
from sphere_callbacks._weights import stack
from sphere_callbacks.curvature import CurvatureProjection
from sphere_callbacks.functional import relative_mask
from sphere_callbacks.functional._checks import as_matrix
from sphere_callbacks.projection import SparseProjection


class RelativeMask(WeightCallback):
    """Zero the entries of each gradient that are small in proportion to the weight they would change.

    The threshold is set for each weight and update on its own (:func:`sphere_callbacks.functional.relative_mask`). It
    works on the gradient when it is ready, so a layer-wise editor solves deeper layers against what was dropped.

    Logged for each batch, as the mean over weights and updates:
        - ``rect/kept``: share of the squared norm of the update that was kept;
        - ``rect/density``: share of its entries that was kept.

    Cost of one update of a ``[n, d]`` weight: one selection of the k-th smallest of ``n d`` numbers.

    Args:
        keep: Share of entries to keep, in ``(0, 1]``; 1 changes no bit.
        modules: Shell-style pattern for the names of the weights; ``None`` takes every floating matrix.

    Raises:
        ValueError: If the share is outside ``(0, 1]``.
        MisconfigurationException: At the start of a fit, if it stands after a :class:`SparseProjection` that projects
            layer by layer, or a :class:`CurvatureProjection`: zeroing entries would bring back what was taken out.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from sphere_callbacks import RelativeMask, SparseProjection
        >>> callbacks = [RelativeMask(keep=0.4), SparseProjection(0.5, 0.8)]
        >>> trainer = Trainer(callbacks=callbacks, logger=False, enable_checkpointing=False, accelerator="cpu")
    """

    label: ClassVar[str] = "RECT"

    def __init__(self, keep: float = 0.4, modules: str | None = None) -> None:
        super().__init__(modules)
        if not 0 < keep <= 1:
            raise ValueError(f"`RelativeMask(keep={keep})` must lie in (0, 1]. Use 1 to keep every entry.")
        self.keep = keep
        self._measured: list[Tensor] = []

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Refuse an order in which the mask would undo the projection."""
        super().setup(trainer, pl_module, stage)
        before = trainer.callbacks[: trainer.callbacks.index(self)]  # type: ignore[attr-defined]
        for other in before:
            sparse = isinstance(other, SparseProjection) and other.when == "layer"
            if sparse or isinstance(other, CurvatureProjection):
                raise MisconfigurationException(
                    f"`RelativeMask` stands after `{type(other).__name__}` in `trainer.callbacks` and would undo it. "
                    "Put `RelativeMask` first."
                )

    @override
    @torch.no_grad()
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Forget what was measured of a batch at which an earlier fit broke off."""
        super().on_train_start(trainer, pl_module)
        self._measured = []

    @override
    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", optimizer: Optimizer
    ) -> None:
        """Zero the small relative changes in the gradients that are ready."""
        for weight in self._with_grad(optimizer, pl_module):
            mask = relative_mask(weight.grad, weight.weight, self.keep)
            before = as_matrix(weight.grad).square().sum()
            weight.grad.mul_(mask)
            kept = torch.where(before == 0, 1.0, as_matrix(weight.grad).square().sum() / before)
            self._measured.append(torch.stack([kept.float(), mask.float().mean()]))

    @override
    def on_train_batch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", *_: Any, **__: Any) -> None:
        """Log what was kept of the batch."""
        if self._measured:
            kept, density = stack(self._measured).mean(dim=0)
            log_values(trainer, pl_module, {"rect/kept": kept, "rect/density": density})
        self._measured = []
