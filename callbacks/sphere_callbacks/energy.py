"""Follow the hyperspherical energy of the weights from batch to batch."""

import logging
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from torch import Tensor
from typing_extensions import override

from sphere_callbacks._base import WeightCallback, log_values
from sphere_callbacks._weights import EditedWeight, stack
from sphere_callbacks.functional import energy_statistics

log = logging.getLogger(__name__)


class HypersphericalEnergy(WeightCallback):
    r"""Measure the Riesz energy of the weight rows after each batch.

    Logged every ``every_n_batches`` batches:
        - ``energy/{name}``: the energy of that weight, summed over ordered pairs of rows
          (:func:`sphere_callbacks.functional.hyperspherical_energy`);
        - ``energy/mean``: mean over weights of the energy *per ordered pair*, which does not grow with their height;
        - ``energy/change``: mean over weights of ``E / E_start - 1``, signed (divided by ``|E_start|``);
        - ``energy/step_change``: the same against the measurement before this one.

    Cost of one measurement of a ``[n, d]`` weight: ``n^2 d`` flops and two tiles of ``block_size ** 2`` numbers, and
    one wait for the device. A matrix with very many rows, such as an embedding, is better left out with ``modules``.

    Args:
        s: Order of the Riesz kernel; 2 is the paper's, 0 the logarithm.
        modules: Shell-style pattern for the names of the weights; ``None`` takes every floating matrix.
        block_size: Side of a tile.
        every_n_batches: Batches between measurements; a trainer repeats the last values in between.

    Attributes:
        initial: Energy of each weight at the start of the fit, by name.
        latest: Energy of each weight at the last measurement, by name.

    Raises:
        ValueError: If an argument is out of range.
        MisconfigurationException: At the start of a fit that resumes one with another order.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> energy = HypersphericalEnergy(s=2.0, modules="*down_proj*")
        >>> trainer = Trainer(callbacks=[energy], logger=False, enable_checkpointing=False, accelerator="cpu")
        >>> energy.initial, energy.latest
        ({}, {})
    """

    summary_name: ClassVar[str] = "hyperspherical_energy"

    def __init__(
        self, s: float = 2.0, modules: str | None = None, block_size: int = 512, every_n_batches: int = 1
    ) -> None:
        super().__init__(modules)
        if not s >= 0:
            raise ValueError(f"`HypersphericalEnergy(s={s})` must be at least 0.")
        for name, value in {"block_size": block_size, "every_n_batches": every_n_batches}.items():
            if value < 1:
                raise ValueError(f"`HypersphericalEnergy({name}={value})` must be at least 1.")
        self.s = s
        self.block_size = block_size
        self.every_n_batches = every_n_batches
        self.initial: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        self._batches = 0
        self._warned: set[str] = set()

    @override
    @torch.no_grad()
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Measure the energies that changes are counted from."""
        super().on_train_start(trainer, pl_module)
        self._record(trainer, pl_module)

    @override
    @torch.no_grad()
    def on_train_batch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", *_: Any, **__: Any) -> None:
        """Measure and log."""
        self._batches += 1
        if self._batches % self.every_n_batches == 0:
            energies, per_pair = self._measure(self._weights)
            log_values(trainer, pl_module, self._report(energies, per_pair))
            self.latest = energies

    def summary(self) -> dict[str, dict[str, float]]:
        """Return the energy of each weight ``before`` the first update and ``after`` the last measured one, by name."""
        return {name: {"before": before, "after": self.latest[name]} for name, before in self.initial.items()}

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the energies at the start and now, of which order they are, and the count of batches."""
        energies = {"initial": dict(self.initial), "latest": dict(self.latest)}
        return {**energies, "batches": self._batches, "arguments": self._arguments()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue to count changes from the start of the interrupted fit."""
        super().load_state_dict(state_dict)
        self.initial, self.latest = dict(state_dict["initial"]), dict(state_dict["latest"])
        self._batches = state_dict["batches"]

    @override
    def _reset(self) -> None:
        self.initial, self.latest, self._batches, self._warned = {}, {}, 0, set()

    @override
    def _arguments(self) -> dict[str, Any]:
        return {"s": self.s}

    @override
    def _record(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        # A checkpoint may hold energies of weights that are not looked at any more.
        names = [weight.name for weight in self._weights]
        self.initial = {name: self.initial[name] for name in names if name in self.initial}
        missing = [weight for weight in self._weights if weight.name not in self.initial]
        if missing:
            self.initial |= self._measure(missing)[0]
        self.latest = {name: self.latest.get(name, self.initial[name]) for name in names}

    def _measure(self, weights: list[EditedWeight]) -> tuple[dict[str, float], Tensor]:
        """Return the energies by name, and their mean per ordered pair."""
        measured = [energy_statistics(weight.weight, self.s, block_size=self.block_size) for weight in weights]
        found = stack([torch.stack([value.double() for value in statistics]) for statistics in measured])
        rows = found.tolist()  # one wait for the device
        for weight, (_, _, *degenerate) in zip(weights, rows, strict=True):
            self._warn(weight.name, degenerate)
        return {w.name: row[0] for w, row in zip(weights, rows, strict=True)}, found[:, 1].mean()

    def _warn(self, name: str, degenerate: list[float]) -> None:
        """Say once for each weight and kind that rows have no place on the sphere."""
        kinds = ("pairs of rows with the same direction", "zero rows", "rows with NaN or infinity")
        for kind, count in zip(kinds, degenerate, strict=True):
            if count and f"{name}: {kind}" not in self._warned:
                self._warned.add(f"{name}: {kind}")
                log.warning("`%s` has %d %s: its energy follows a convention there.", name, int(count), kind)

    def _report(self, energies: dict[str, float], per_pair: Tensor) -> dict[str, Tensor]:
        values = {f"energy/{name}": per_pair.new_tensor(energy) for name, energy in energies.items()}
        changes = {"energy/change": self.initial, "energy/step_change": self.latest}
        values |= {name: per_pair.new_tensor(mean_change(energies, start)) for name, start in changes.items()}
        return values | {"energy/mean": per_pair}


def mean_change(now: dict[str, float], start: dict[str, float]) -> float:
    """Average the signed relative changes of energies; those that started at 0 and stayed count as 0.

    Example:
        >>> mean_change({"a": 3.0, "b": -1.0}, {"a": 2.0, "b": -2.0})
        0.5
    """
    changes = [(now[name] - start[name]) / (abs(start[name]) or 1.0) for name in now]
    return sum(changes) / len(changes)
