"""Notice when the weights collapse, and warn, stop or go back."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from sphere_callbacks._base import WeightCallback, is_fitting
from sphere_callbacks._weights import EditedWeight, edited_weights, matches, require_names
from sphere_callbacks.energy import HypersphericalEnergy
from sphere_callbacks.functional._checks import as_matrix

log = logging.getLogger(__name__)


class CollapseGuard(WeightCallback):
    """Check weights and metrics against limits and act when one is crossed.

    Crossed are: a limit of ``above`` or ``below``, by a value that is larger or smaller, or NaN;
    ``max_energy_change``, by the absolute value of ``energy/change``; ``max_weight_growth``, by the Frobenius norm of
    a weight over its norm at the start; and always, a NaN or an infinity in a weight or in another parameter whose name
    fits ``modules``. Each time, one sentence with the reason goes to this module's logger and to :attr:`last_reason`.

    With ``action="rollback"`` the weights are put back to where they were at the last good check; after a NaN or an
    infinity so is every other parameter of the optimizers whose name fits ``modules``, such as a bias, which the same
    step has reached, and what an optimizer remembers of a parameter is forgotten where it is not finite: moments of NaN
    would spoil every later step. What else the optimizer or the module remembers (momentum, keys of past edits) stays.
    A module that keeps copies of its weights must refresh them after ``on_train_batch_end`` or ``on_validation_end``,
    whichever ``check`` names.

    A limit whose metric was in no check of the fit is named in a warning when the fit ends.

    Under several processes each decides for itself: log the metrics it watches with ``sync_dist=True``, so that all
    decide alike.

    Cost of one check of a ``[n, d]`` weight: ``O(n d)`` and a wait for the device; with rollback also a copy to CPU
    memory, where one copy of each parameter is held. With rollback that copy is part of the checkpoint.

    Args:
        above: Upper limits of logged metrics, by name or shell-style pattern.
        below: Lower limits of logged metrics, by name or shell-style pattern.
        max_energy_change: Limit of the absolute relative change of energy that :class:`HypersphericalEnergy` logs.
        max_weight_growth: Limit of the growth of each weight's norm, such as 2.0.
        action: What to do: ``"warn"``, ``"stop"`` the fit after this batch, or ``"rollback"``.
        check: When: after each ``"batch"`` or each ``"validation"``. Metrics of a validation keep their value until
            the next one, so limits on them belong to ``"validation"``.
        modules: Shell-style pattern for the names of the weights; ``None`` takes every floating matrix.

    Attributes:
        last_reason: The sentence about the last crossing, ``""`` before the first.
        crossings: How many checks found a limit crossed.
        skipped: How many batches were undone by rollbacks.

    Raises:
        ValueError: If an argument is out of range.
        MisconfigurationException: At the start of a fit, if ``energy/*`` is watched and :class:`HypersphericalEnergy`
            is missing or stands after the guard.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from sphere_callbacks import CollapseGuard, HypersphericalEnergy
        >>> guard = CollapseGuard(max_energy_change=0.05, max_weight_growth=2.0, action="rollback")
        >>> callbacks = [HypersphericalEnergy(), guard]
        >>> trainer = Trainer(callbacks=callbacks, logger=False, enable_checkpointing=False, accelerator="cpu")
    """

    def __init__(
        self,
        above: dict[str, float] | None = None,
        below: dict[str, float] | None = None,
        max_energy_change: float | None = None,
        max_weight_growth: float | None = None,
        action: Literal["warn", "stop", "rollback"] = "warn",
        check: Literal["batch", "validation"] = "batch",
        modules: str | None = None,
    ) -> None:
        super().__init__(modules)
        _check_arguments(max_energy_change, max_weight_growth, action, check)
        self.above = dict(above or {})
        self.below = dict(below or {})
        self.max_energy_change = max_energy_change
        self.max_weight_growth = max_weight_growth
        self.action = action
        self.check = check
        self.last_reason, self.crossings, self.skipped = "", 0, 0
        self._batches = self._good_batch = self._checked = 0
        self._norms: dict[str, float] = {}
        self._good: dict[str, Tensor] = {}
        self._guarded: list[EditedWeight] = []
        self._unseen: set[str] = set()

    @property
    def state_key(self) -> str:
        """Tell a guard of batches from one of validations."""
        return self._generate_state_key(check=self.check)

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Refuse an order in which the guard would look at the energy of the batch before."""
        super().setup(trainer, pl_module, stage)
        watched = any(name.startswith("energy/") for name, _, _ in self._limits())
        before = trainer.callbacks[: trainer.callbacks.index(self)]  # type: ignore[attr-defined]
        if stage == "fit" and watched and not any(isinstance(other, HypersphericalEnergy) for other in before):
            raise MisconfigurationException(
                "`CollapseGuard` watches the energy, so a `HypersphericalEnergy` must stand before it in "
                "`trainer.callbacks`."
            )

    @override
    @torch.no_grad()
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Record the norms of the weights and, for rollback, all parameters."""
        super().on_train_start(trainer, pl_module)
        self._unseen = {name for name, _, _ in self._limits()}
        if not self._good:
            self._good_batch = self._batches
        self._record(trainer, pl_module)

    @override
    @torch.no_grad()
    def on_train_batch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", *_: Any, **__: Any) -> None:
        """Check after a batch."""
        self._batches += 1
        if self.check == "batch":
            self._inspect(trainer)

    @override
    @torch.no_grad()
    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Check after a validation, when all its metrics are known."""
        if self.check == "validation" and is_fitting(trainer):
            self._inspect(trainer)

    @override
    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Name the limits that guarded nothing."""
        if self._unseen and self._checked:
            log.warning(
                "`CollapseGuard` has limits for %s, but no check found a metric of such a name. Logged were: %s.",
                ", ".join(sorted(self._unseen)),
                ", ".join(sorted(trainer.callback_metrics)) or "none",
            )

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the counts, the norms of the start and, for rollback, the last good weights."""
        return {
            "batches": self._batches,
            "good_batch": self._good_batch,
            "checked": self._checked,
            "crossings": self.crossings,
            "skipped": self.skipped,
            "last_reason": self.last_reason,
            "norms": dict(self._norms),
            "good": dict(self._good),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on guarding from the start and the last good weights of the interrupted fit."""
        super().load_state_dict(state_dict)
        self._batches, self._checked = state_dict["batches"], state_dict["checked"]
        self._good_batch = state_dict["good_batch"]
        self.crossings, self.skipped = state_dict["crossings"], state_dict["skipped"]
        self.last_reason = state_dict["last_reason"]
        self._norms, self._good = dict(state_dict["norms"]), dict(state_dict["good"])

    @override
    def _reset(self) -> None:
        self.last_reason, self.crossings, self.skipped = "", 0, 0
        self._batches = self._good_batch = self._checked = 0
        self._norms, self._good = {}, {}

    @torch.no_grad()
    def take_for_good(self) -> None:
        """Take the weights as they are now for good, whatever they were when the fit started."""
        self._keep()

    @override
    def _record(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        for weight in self._weights:
            if weight.name not in self._norms:
                self._norms[weight.name] = _norm(weight.weight)
        # What a NaN can reach: the biases as well as the weights.
        self._guarded = edited_weights(trainer.optimizers, pl_module, self.modules, any_shape=True)
        if self.action == "rollback":
            require_names(self._guarded, type(self).__name__)
            self._good = {each.name: self._good.get(each.name, _copy(each.weight)) for each in self._guarded}

    def _limits(self) -> list[tuple[str, float, int]]:
        """List the limits of metrics as name or pattern, value, and 1 for an upper or -1 for a lower one."""
        limits = [(name, limit, 1) for name, limit in self.above.items()]
        limits += [(name, limit, -1) for name, limit in self.below.items()]
        if self.max_energy_change is not None:
            limits += [("energy/change", self.max_energy_change, 1), ("energy/change", -self.max_energy_change, -1)]
        return limits

    def _keep(self) -> None:
        """Take this batch for good."""
        self._good_batch = self._batches
        if self.action == "rollback":
            self._good = {each.name: _copy(each.weight) for each in self._guarded}

    def _inspect(self, trainer: "pl.Trainer") -> None:
        metrics = trainer.callback_metrics
        self._unseen = {limit for limit in self._unseen if not any(matches(name, limit) for name in metrics)}
        reason = next(self._reasons(metrics), "")
        if reason:
            self.crossings += 1
            self.last_reason = f"After batch {self._batches}, {reason}; {self._act(trainer)}."
            log.warning(self.last_reason)
        else:
            self._keep()
        self._checked = self._batches

    def _reasons(self, metrics: Mapping[str, Tensor]) -> Iterator[str]:
        """Say what is wrong, worst first."""
        for each in self._guarded:
            if not bool(each.weight.isfinite().all()):
                yield f"`{each.name}` has NaN or infinity"
        for weight in self._weights:
            growth = _norm(weight.weight) / (self._norms[weight.name] or 1.0)
            if self.max_weight_growth is not None and growth > self.max_weight_growth:
                yield f"`{weight.name}` has {growth:.4g} times its norm at the start (limit {self.max_weight_growth:g})"
        yield from self._crossed(metrics)

    def _crossed(self, metrics: Mapping[str, Tensor]) -> Iterator[str]:
        limits = self._limits()
        for name in metrics:
            watching = [each for each in limits if matches(name, each[0])]
            value = float(metrics[name]) if watching else 0.0  # each reading waits for the device
            for _, limit, sign in watching:
                if not sign * value <= sign * limit:  # NaN crosses every limit
                    yield f"`{name}` is {value:.4g} ({'upper' if sign > 0 else 'lower'} limit {limit:g})"

    def _is_finite(self) -> bool:
        return all(bool(each.weight.isfinite().all()) for each in self._guarded)

    def _act(self, trainer: "pl.Trainer") -> str:
        """Do what was asked and say so."""
        if self.action == "stop":
            trainer.should_stop = True
            return "the run stops"
        if self.action == "warn":
            return "the run continues"
        if self._is_finite():
            undone = self._weights
        else:
            undone = self._guarded
            _forget_nan(trainer.optimizers, undone)
        for each in undone:
            each.weight.copy_(self._good[each.name])
        self.skipped += self._batches - self._checked
        return f"the weights are back to where they were after batch {self._good_batch}"


def _forget_nan(optimizers: Iterable[Optimizer], parameters: Iterable[EditedWeight]) -> None:
    """Let optimizers start afresh with the parameters of which they remember NaN or infinity."""
    for optimizer, each in product(optimizers, list(parameters)):
        remembered = optimizer.state.get(each.parameter, {}).values()
        numbers = [value for value in remembered if isinstance(value, Tensor) and value.is_floating_point()]
        if not all(bool(value.isfinite().all()) for value in numbers):
            del optimizer.state[each.parameter]


def _norm(weight: Tensor) -> float:
    """Frobenius norm, not rounded to a half precision of the weight."""
    return float(torch.linalg.matrix_norm(as_matrix(weight)))


def _copy(weight: Tensor) -> Tensor:
    return weight.to("cpu", copy=True)


def _check_arguments(max_energy_change: float | None, max_weight_growth: float | None, action: str, check: str) -> None:
    for name, value in (("max_energy_change", max_energy_change), ("max_weight_growth", max_weight_growth)):
        if value is not None and not value > 0:
            raise ValueError(f"`CollapseGuard({name}={value})` must be above 0. Leave it out to not watch it.")
    for name, given, allowed in (
        ("action", action, ("warn", "stop", "rollback")),
        ("check", check, ("batch", "validation")),
    ):
        if given not in allowed:
            raise ValueError(f"`CollapseGuard({name}={given!r})` must be one of {', '.join(map(repr, allowed))}.")
