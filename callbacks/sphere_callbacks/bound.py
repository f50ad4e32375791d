"""Hold the theorem on energy and perturbation against what a run does."""

from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor
from typing_extensions import override

from sphere_callbacks._base import WeightCallback, log_values
from sphere_callbacks._weights import EditedWeight, stack
from sphere_callbacks.functional import hyperspherical_energy, output_perturbation, perturbation_bound


class PerturbationBound(WeightCallback):
    r"""Compare how far the weights moved with what their change of energy implies.

    The theorem reads :math:`\lVert \Delta W \rVert^2 \ge (\Delta HE / K)^2`. It is a statement to first order about
    orthonormal inputs, so this is a monitor: nothing is guaranteed, and a tightness above 1 refutes the
    approximation, not the run.

    Logged every ``every_n_batches`` batches, for the change since the measurement before, as the mean over weights:
        - ``bound/perturbation``: :math:`\lVert \Delta W \rVert_F^2`;
        - ``bound/lower``: :math:`(\Delta HE / K)^2`, with ``K`` of the weight before the change;
        - ``bound/tightness``: their ratio, at most 1 where the theorem holds; 0 for a weight that did not move.

    Cost of one measurement of a ``[n, d]`` weight: twice ``n^2 d`` flops, and one copy of the weight is held. The
    copy is not saved: a resumed run counts its first change from where it resumes.

    Args:
        s: Order of the energy.
        rows: ``"raw"`` is the theorem's ``K``, of rows as they are; ``"unit"`` is the constant of the normalised energy
            (:func:`sphere_callbacks.functional.energy_constant`).
        modules: Shell-style pattern for the names of the weights; ``None`` takes every floating matrix.
        every_n_batches: Batches between measurements.
        block_size: Side of a tile.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> bound = PerturbationBound(rows="unit", modules="*down_proj*")
        >>> trainer = Trainer(callbacks=[bound], logger=False, enable_checkpointing=False, accelerator="cpu")
    """

    def __init__(
        self,
        s: float = 2.0,
        rows: Literal["raw", "unit"] = "raw",
        modules: str | None = None,
        every_n_batches: int = 1,
        block_size: int = 512,
    ) -> None:
        super().__init__(modules)
        if not s >= 0:
            raise ValueError(f"`PerturbationBound(s={s})` must be at least 0.")
        if rows not in ("raw", "unit"):
            raise ValueError(f"`PerturbationBound(rows={rows!r})` must be 'raw' or 'unit'.")
        for name, value in (("every_n_batches", every_n_batches), ("block_size", block_size)):
            if value < 1:
                raise ValueError(f"`PerturbationBound({name}={value})` must be at least 1.")
        self.s = s
        self.rows = rows
        self.every_n_batches = every_n_batches
        self.block_size = block_size
        self._before: dict[str, tuple[Tensor, Tensor]] = {}
        self._batches = 0

    @override
    @torch.no_grad()
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Remember the weights and their energies."""
        super().on_train_start(trainer, pl_module)
        self._record(trainer, pl_module)

    @override
    def _reset(self) -> None:
        self._before, self._batches = {}, 0

    @override
    def _record(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        for weight in self._weights:
            if weight.name not in self._before:
                self._before[weight.name] = (weight.weight.clone(), self._energy(weight))

    @override
    @torch.no_grad()
    def on_train_batch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", *_: Any, **__: Any) -> None:
        """Measure the change and log both sides."""
        self._batches += 1
        if self._batches % self.every_n_batches == 0:
            measured = stack([self._compare(weight) for weight in self._weights]).mean(dim=0)
            names = ("bound/perturbation", "bound/lower", "bound/tightness")
            log_values(trainer, pl_module, dict(zip(names, measured, strict=True)))

    def _energy(self, weight: EditedWeight) -> Tensor:
        return hyperspherical_energy(weight.weight, self.s, block_size=self.block_size)

    def _compare(self, weight: EditedWeight) -> Tensor:
        """Return perturbation, lower bound and their ratio for one weight, and remember where it is now."""
        before, energy_before = self._before[weight.name]
        energy = self._energy(weight)
        change = energy - energy_before
        bound = perturbation_bound(before, change, self.s, rows=self.rows, block_size=self.block_size)
        moved = output_perturbation(weight.weight - before)
        self._before[weight.name] = (weight.weight.clone(), energy)
        return torch.stack([moved, bound.lower, torch.where(moved == 0, 0.0, bound.lower / moved)])
