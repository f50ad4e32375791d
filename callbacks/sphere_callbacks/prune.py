"""PRUNE: evaluate and save with the accumulated change restrained, edit on without."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from typing_extensions import override

from sphere_callbacks._base import WeightCallback, require_record
from sphere_callbacks._weights import EditedWeight, about, stack
from sphere_callbacks.functional import principal_directions, project_out, restrain_spectrum, spectral_norm
from sphere_callbacks.functional._checks import as_matrix
from sphere_callbacks.loop import Loop


class Original(NamedTuple):
    """A weight before any edit.

    Attributes:
        weight: Its values ``[d_out, d_in]`` in CPU memory.
        limit: Its largest singular value.
        registered: The name of the parameter in the module, ``""`` if the module does not know it.
        fan_in_fan_out: Whether the parameter is stored transposed.
    """

    weight: Tensor
    limit: float
    registered: str
    fan_in_fan_out: bool


class SpectrumRestraint(WeightCallback):
    r"""Restrain the singular values of the accumulated change ``W - W_0`` wherever the weights are looked at.

    Editing itself continues with the unrestrained weights. For validation, test and prediction the weights are swapped
    for ``W_0 + restrained`` (:func:`sphere_callbacks.functional.restrain_spectrum`, with the spectral norm of ``W_0``
    as the limit) and swapped back afterwards, bit for bit. Checkpoints hold the restrained weights in ``state_dict``,
    for whoever loads the file, and the unrestrained ones beside it, from which a resumed fit continues. The swap
    happens in ``on_validation_epoch_start`` and ``on_validation_epoch_end`` (likewise for test and prediction), which
    run before the module's own hooks of these names. :meth:`swapped` does the same for any other code.

    Logged for each validation and test: ``prune/removed``, the share of the squared norm of the accumulated change that
    the restraint took away, as the mean over weights.

    Cost of one swap of a ``[n, d]`` weight: a Gram matrix and an eigendecomposition of size ``min(n, d)`` in float64.
    Each ``W_0`` is held in CPU memory and in the checkpoint.

    Args:
        modules: Shell-style pattern for the names of the weights; ``None`` takes every floating matrix.
        project_cumulative_ratio: Ratio of an optional SPHERE projection of the restrained change, with the directions
            of ``W_0``.
        project_strength: Strength of that projection in ``[0, 1]``; 0 leaves it out.

    Raises:
        ValueError: If an argument is out of range.
        MisconfigurationException: At the start of a fit that resumes from a checkpoint without a record of ``W_0``, or
            with a weight that has no largest singular value above 0; and where another module than that of the fit is
            evaluated, since ``W_0`` is not its.

    Note:
        A checkpoint saved with ``save_weights_only=True`` reaches no callback and holds the unrestrained weights.

    Example:
        >>> weight = torch.nn.Linear(2, 2, bias=False)
        >>> restraint = SpectrumRestraint()
        >>> restraint.on_train_start(Loop([torch.optim.SGD(weight.parameters(), lr=1.0)]), weight)
        >>> _ = weight.weight.data.add_(100 * torch.eye(2))
        >>> with restraint.swapped(weight):
        ...     bool(weight.weight.norm() < 20)
        True
        >>> bool(weight.weight.norm() > 100)
        True
    """

    label: ClassVar[str] = "PRUNE"

    def __init__(
        self, modules: str | None = None, project_cumulative_ratio: float = 0.5, project_strength: float = 0.0
    ) -> None:
        super().__init__(modules)
        if not 0 <= project_cumulative_ratio < 1:
            raise ValueError(
                f"`SpectrumRestraint(project_cumulative_ratio={project_cumulative_ratio})` must lie in [0, 1)."
            )
        if not 0 <= project_strength <= 1:
            raise ValueError(f"`SpectrumRestraint(project_strength={project_strength})` must lie in [0, 1].")
        self.project_cumulative_ratio = project_cumulative_ratio
        self.project_strength = project_strength
        self._originals: dict[str, Original] = {}
        self._live: dict[str, Tensor] = {}
        self._fitted = False

    @override
    @torch.no_grad()
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Record the weights before the first edit, or find them in what was resumed."""
        super().on_train_start(trainer, pl_module)
        if any(weight.name not in self._originals for weight in self._weights):
            require_record(trainer, "SpectrumRestraint()", "the weights before the first edit")
        self._record(trainer, pl_module)
        self._fitted = True

    @override
    def on_validation_epoch_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Swap the restrained weights in."""
        if isinstance(trainer, Loop) or not trainer.sanity_checking:
            self._enter(trainer, pl_module)

    @override
    def on_validation_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Swap the weights of the fit back in."""
        self._swap_back(pl_module)

    @override
    def on_test_epoch_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Swap the restrained weights in."""
        self._enter(trainer, pl_module)

    @override
    def on_test_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Swap the weights of the fit back in."""
        self._swap_back(pl_module)

    @override
    def on_predict_epoch_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Swap the restrained weights in."""
        self._swap_in(pl_module)

    @override
    def on_predict_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Swap the weights of the fit back in."""
        self._swap_back(pl_module)

    @override
    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        """Leave the weights of the fit in place when an evaluation breaks off."""
        self._swap_back(pl_module)

    @override
    @torch.no_grad()
    def on_save_checkpoint(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", checkpoint: dict[str, Any]
    ) -> None:
        """Put the restrained weights into the ``state_dict`` and the live ones beside it."""
        state = dict(checkpoint["state_dict"])
        live = {}
        for weight in self._targets(pl_module):
            path = self._originals[weight.name].registered
            if path in state:
                live[path] = weight.orient(self._live.get(weight.name, weight.weight))
                restrained = weight.orient(self._restrained(weight.name, weight.orient(live[path]))[0])
                state |= dict.fromkeys(_names_of(weight, pl_module) & state.keys(), restrained)
        if live:
            checkpoint["state_dict"], checkpoint["spectrum_restraint"] = state, live

    @override
    @torch.no_grad()
    def on_load_checkpoint(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", checkpoint: dict[str, Any]
    ) -> None:
        """Put the live weights back where loading the ``state_dict`` has written the restrained ones."""
        for path, live in checkpoint.get("spectrum_restraint", {}).items():
            pl_module.get_parameter(path).copy_(live)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the weights before any edit."""
        return {"originals": {name: original._asdict() for name, original in self._originals.items()}}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count the change from the weights before the first edit of the interrupted fit."""
        super().load_state_dict(state_dict)
        self._originals = {name: Original(**original) for name, original in state_dict["originals"].items()}
        self._fitted = False  # the checkpoint's weights may be in any module of the same shape

    @contextmanager
    def swapped(self, module: nn.Module) -> Iterator[None]:
        """Hold the restrained weights in the module within a ``with`` block.

        Inside a validation, where they are in place already, the block changes nothing.

        Args:
            module: The module whose weights the callback has recorded.
        """
        if self._live:
            yield
            return
        try:
            self._swap_in(module)
            yield
        finally:
            self._swap_back(module)

    @override
    def _reset(self) -> None:
        self._originals, self._live = {}, {}

    @override
    def _record(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        registered = {id(parameter): name for name, parameter in pl_module.named_parameters()}
        self._originals = {
            weight.name: self._originals.get(weight.name)
            or Original(
                weight=weight.weight.to("cpu", copy=True),
                limit=_limit(weight),
                registered=registered.get(id(weight.parameter), ""),
                fan_in_fan_out=weight.fan_in_fan_out,
            )
            for weight in self._weights
        }

    def _targets(self, module: nn.Module) -> list[EditedWeight]:
        """Find the recorded weights, also in a process that has not fitted."""
        parameters = dict(module.named_parameters())
        held = {weight.name: weight for weight in self._weights}
        found = []
        for name, original in self._originals.items():
            parameter = parameters[original.registered] if original.registered else held[name].parameter
            if self._fitted and parameter is not held[name].parameter:
                raise MisconfigurationException(
                    f"`SpectrumRestraint` has recorded what `{name}` was before the fit of another module, so it "
                    "cannot restrain this one. Give the fit's checkpoint as `ckpt_path`, or leave the callback out: "
                    "the weights in a checkpoint are restrained already."
                )
            found.append(EditedWeight(name, parameter, original.fan_in_fan_out))
        return found

    def _restrained(self, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the restrained weight and the share of the accumulated change that this removes."""
        original = self._originals[name].weight.to(weight.device)
        change = weight - original
        with about(name):
            restrained = restrain_spectrum(change, self._originals[name].limit)
        if self.project_strength:
            directions = principal_directions(original, self.project_cumulative_ratio)
            restrained = project_out(restrained, directions, self.project_strength)
        if restrained is change:  # nothing to restrain: not even the rounding of W_0 + (W - W_0)
            return weight, weight.new_zeros(())
        removed, whole = as_matrix(change - restrained), as_matrix(change)
        return original + restrained, removed.square().sum() / whole.square().sum()

    @torch.no_grad()
    def _swap_in(self, module: nn.Module) -> list[Tensor]:
        removed = []
        for weight in self._targets(module):
            restrained, share = self._restrained(weight.name, weight.weight)
            self._live[weight.name] = weight.weight.clone()  # last: what is in here has been swapped
            weight.weight.copy_(restrained)
            removed.append(share)
        return removed

    @torch.no_grad()
    def _swap_back(self, module: nn.Module) -> None:
        if self._live:
            for weight in (each for each in self._targets(module) if each.name in self._live):
                weight.weight.copy_(self._live[weight.name])
        self._live = {}

    def _enter(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        removed = self._swap_in(pl_module)
        if removed:
            values = {"prune/removed": stack(removed).mean()}
            if isinstance(trainer, Loop):
                trainer.log_dict(values)
            else:
                # Equal on all ranks; without `sync_dist` Lightning warns of a metric of one rank.
                pl_module.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)


def _limit(weight: EditedWeight) -> float:
    """Largest singular value of a weight before any edit; without one there is nothing to restrain a change to."""
    finite = bool(weight.weight.isfinite().all())
    limit = float(spectral_norm(weight.weight)) if finite else torch.nan
    if not limit > 0:
        raise MisconfigurationException(
            f"`SpectrumRestraint` restrains changes by the largest singular value of the weight at the start, and that "
            f"of `{weight.name}` is {limit:g}: it {'is all zeros' if finite else 'has NaN or infinity'}. Leave it out "
            "with `modules`."
        )
    return limit


def _names_of(weight: EditedWeight, module: nn.Module) -> set[str]:
    """All names under which a module knows a weight: modules may share it."""
    return {name for name, each in module.named_parameters(remove_duplicate=False) if each is weight.parameter}
