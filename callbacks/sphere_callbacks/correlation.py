"""Follow how the energy of the weights and the validation metrics move together."""

import logging
from typing import Any, ClassVar, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from typing_extensions import override

from sphere_callbacks._base import is_fitting, logged_step
from sphere_callbacks._weights import matches
from sphere_callbacks.functional.statistics import SpearmanResult, partial_spearman, spearman, spearman_test

log = logging.getLogger(__name__)


class Correlation(NamedTuple):
    """How one metric moves with the energy.

    Attributes:
        levels: Spearman correlation of the two series (paper, Fig. 2).
        differences: That of their consecutive differences (paper, Fig. 3), which a common trend does not inflate.
        partial: That of the levels with the position in the series held fixed.
    """

    levels: SpearmanResult
    differences: SpearmanResult
    partial: float


class EnergyCorrelation(Callback):
    """Correlate the energy with every matching metric over the validations of a fit.

    Logged at the end of each validation inside a fit, from ``min_points`` points on:
        - ``spearman/{metric}``: rank correlation of the levels;
        - ``spearman_diff/{metric}``: rank correlation of the consecutive differences.

    They reach the loggers in a row of their own, under the step of the validation's metrics, and appear in
    ``trainer.callback_metrics``. A series that never changes has no rank correlation: NaN.

    The callback reads ``trainer.callback_metrics`` after the module has logged its epoch, so metrics may be logged from
    ``validation_step`` or ``on_validation_epoch_end``. Whatever logs the energy (:class:`HypersphericalEnergy`) may
    stand anywhere in ``trainer.callbacks``.

    Args:
        metrics: Shell-style patterns for the names of the metrics; ``None`` stands for ``["val/*"]``.
        energy: Name under which the energy is logged.
        min_points: Validations before anything is logged, at least 3.

    Raises:
        ValueError: If there is no pattern, or too few points are asked for.

    Example:
        >>> correlation = EnergyCorrelation(metrics=["val/*"], min_points=4)
        >>> correlation.summary()
        {}
    """

    summary_name: ClassVar[str] = "spearman"

    def __init__(self, metrics: list[str] | None = None, energy: str = "energy/mean", min_points: int = 4) -> None:
        metrics = ["val/*"] if metrics is None else metrics
        if not isinstance(metrics, list) or not metrics:
            raise ValueError(f"`EnergyCorrelation(metrics={metrics!r})` must be a list of patterns, such as ['val/*'].")
        if min_points < 3:
            raise ValueError(
                f"`EnergyCorrelation(min_points={min_points})` must be at least 3: two points always agree."
            )
        self.metrics = list(metrics)
        self.energy = energy
        self.min_points = min_points
        self.series: dict[str, list[tuple[float, float]]] = {}
        self._restored = False
        self._warned = False

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Drop the series of an earlier fit unless they were loaded for this one."""
        if not self._restored:
            self.series = {}
        self._restored, self._warned = False, False

    @override
    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Add a point to each series and log the correlations so far."""
        if not is_fitting(trainer):
            return
        metrics = trainer.callback_metrics
        names = [name for name in metrics if self._wanted(name)]
        if self.energy not in metrics or not names:
            self._warn(sorted(metrics))
            return
        for name in names:
            self.series.setdefault(name, []).append((float(metrics[self.energy]), float(metrics[name])))
        self._log(trainer, names)

    @override
    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Let the next fit start afresh, also after the evaluation of a checkpoint."""
        self._restored = False

    def summary(self) -> dict[str, Correlation]:
        """Compute every correlation with its test and its interval.

        Returns:
            A :class:`Correlation` for each metric, by name.
        """
        found = {}
        for name in self.series:
            energy, metric = self._points(name)
            position = torch.arange(len(energy), dtype=torch.float64)
            found[name] = Correlation(
                levels=spearman_test(energy, metric),
                differences=spearman_test(energy.diff(), metric.diff()),
                partial=float(partial_spearman(energy, metric, position)),
            )
        return found

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the series."""
        return {"series": {name: [list(point) for point in points] for name, points in self.series.items()}}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the series of the interrupted fit."""
        self._restored = True
        self.series = {name: [(x, y) for x, y in points] for name, points in state_dict["series"].items()}

    def _wanted(self, name: str) -> bool:
        if name == self.energy or name.startswith(("spearman/", "spearman_diff/")):
            return False
        return any(matches(name, pattern) for pattern in self.metrics)

    def _points(self, name: str) -> tuple[Tensor, Tensor]:
        points = torch.tensor(self.series[name], dtype=torch.float64)  # [n, 2]
        return points[:, 0], points[:, 1]

    def _log(self, trainer: "pl.Trainer", names: list[str]) -> None:
        """Send the coefficients to the loggers: modules may not log in this hook, the first that sees all metrics."""
        values = {}
        for name in names:
            if len(self.series[name]) >= self.min_points:
                energy, metric = self._points(name)
                values[f"spearman/{name}"] = spearman(energy, metric)
                values[f"spearman_diff/{name}"] = spearman(energy.diff(), metric.diff())
        trainer.callback_metrics.update(values)
        if values:
            for logger in trainer.loggers:
                logger.log_metrics({name: float(value) for name, value in values.items()}, step=logged_step(trainer))

    def _warn(self, names: list[str]) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "`EnergyCorrelation(metrics=%s, energy=%r)` found no such pair of metrics at the end of a validation. "
                "Logged so far: %s.",
                self.metrics,
                self.energy,
                ", ".join(names) or "nothing",
            )
