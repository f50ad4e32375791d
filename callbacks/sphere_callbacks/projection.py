"""SPHERE's sparse projection: keep updates out of the principal directions of the weight they change."""

from collections.abc import Callable
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from sphere_callbacks._base import WeightCallback, log_values, require_record
from sphere_callbacks._weights import EditedWeight, about, edited_weights, stack
from sphere_callbacks.functional import (
    principal_directions,
    principal_share,
    project_out,
    project_out_both,
    reading_from,
)
from sphere_callbacks.functional._checks import as_matrix


class SparseProjection(WeightCallback):
    r"""Weaken the part of each update that reads from the principal directions of the weight.

    Before an optimizer applies a gradient to a weight ``W``, the gradient passes through
    :math:`I - \alpha U U^\top`, where the columns of ``U`` are the leading eigenvectors of the second moment of the
    row-normalised ``W`` (:func:`sphere_callbacks.functional.principal_directions`). With an editing optimizer the
    gradient is minus the edit; with any other it is the direction of the step, before momentum and scaling.

    Logged for each batch, as the mean over weights and updates:
        - ``projection/removed``: share of the squared norm of the update that was taken away;
        - ``projection/in_principal``: share of it that lay in the principal input directions before;
        - ``projection/chance``: the share that a random update would have there, ``r / d_in``;
        - ``projection/rank``: the number ``r`` of principal directions.

    Cost of one update of a ``[n, d]`` weight: ``2 n d min(n, d)`` flops for the Gram matrix, about ``9 min(n, d)^3``
    for its eigenvectors and ``6 n d r`` to project and measure. ``refresh_every`` and ``basis="pretrained"`` save the
    first two.

    Args:
        cumulative_ratio: Share of the eigenvalue sum that the principal directions exceed, in ``[0, 1)``.
        strength: How much of the part is removed, in ``[0, 1]``; 0 changes no bit and still logs.
        basis: ``"current"`` takes the directions from the weight as it is, ``"pretrained"`` from the weight at the
            start of the fit.
        refresh_every: With ``"current"``, updates of a weight for which its directions are kept.
        sides: ``"both"`` also removes the principal output directions (those of the transposed weight); it is a hard
            cut and needs ``strength=1.0``.
        when: ``"layer"`` projects each gradient when it is ready, so a layer-wise editor solves deeper layers against
            what was removed. ``"step"`` leaves gradients alone and projects what the whole optimizer step changed, with
            directions from the weights before it; it holds one more copy of each weight during the step.
        modules: Shell-style pattern for the names of the weights; ``None`` takes every floating matrix.

    Raises:
        ValueError: If an argument is out of range or two of them contradict each other.
        MisconfigurationException: At the start of a fit, if ``basis="pretrained"`` resumes from a checkpoint without a
            record of the pretrained directions, or with one that other arguments made.

    Note:
        With ``when="step"`` the weights change after the optimizer's step has returned to PyTorch's post hooks. A
        module that keeps copies of its weights must refresh them after ``optimizer.step``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> projection = SparseProjection(cumulative_ratio=0.5, strength=0.5, modules="*down_proj*")
        >>> trainer = Trainer(callbacks=[projection], logger=False, enable_checkpointing=False, accelerator="cpu")
    """

    def __init__(
        self,
        cumulative_ratio: float = 0.5,
        strength: float = 0.5,
        basis: Literal["current", "pretrained"] = "current",
        refresh_every: int = 1,
        sides: Literal["input", "both"] = "input",
        when: Literal["layer", "step"] = "layer",
        modules: str | None = None,
    ) -> None:
        super().__init__(modules)
        _check_arguments(cumulative_ratio, strength, basis, refresh_every, sides, when)
        self.cumulative_ratio = cumulative_ratio
        self.strength = strength
        self.basis = basis
        self.refresh_every = refresh_every
        self.sides = sides
        self.when = when
        self._bases: dict[str, tuple[Tensor, ...]] = {}
        self._ages: dict[str, int] = {}
        self._starts: dict[str, Tensor] = {}
        self._measured: list[Tensor] = []
        self._handles: list[RemovableHandle] = []

    @property
    def label(self) -> str:
        """What the projection adds to the name of a run; nothing if the strength is 0."""
        return "SPHERE" if self.strength > 0 else ""

    @override
    @torch.no_grad()
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Record the pretrained directions and, for ``when="step"``, hook into the optimizers."""
        super().on_train_start(trainer, pl_module)
        if self.basis == "pretrained" and any(weight.name not in self._bases for weight in self._weights):
            require_record(trainer, "SparseProjection(basis='pretrained')", "the directions of the pretrained weights")
        self._record(trainer, pl_module)
        self._measured = []  # of a batch at which an earlier fit broke off
        self._release()
        if self.when == "step":
            for optimizer in trainer.optimizers:
                self._handles.append(optimizer.register_step_pre_hook(self._remember(pl_module)))
                self._handles.append(optimizer.register_step_post_hook(self._project_step(pl_module)))

    @override
    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", optimizer: Optimizer
    ) -> None:
        """Project the gradients that are ready."""
        if self.when == "layer":
            for weight in self._with_grad(optimizer, pl_module):
                weight.grad.copy_(self._project(weight.name, weight.weight, weight.grad))

    @override
    def on_train_batch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", *_: Any, **__: Any) -> None:
        """Log what the projection did to the batch."""
        if self._measured:
            names = ("projection/removed", "projection/in_principal", "projection/chance", "projection/rank")
            means = stack(self._measured).mean(dim=0)
            log_values(trainer, pl_module, dict(zip(names, means, strict=True)))
        self._measured = []

    @override
    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Take the hooks off the optimizers."""
        self._release()

    @override
    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        """Take the hooks off the optimizers when a fit breaks off."""
        self._release()

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the directions that are still in use, what they are, and how many updates they have served."""
        bases = {name: list(bases) for name, bases in self._bases.items()}
        return {"bases": bases, "ages": dict(self._ages), "arguments": self._arguments()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over saved directions, so that a resumed fit makes the same updates."""
        super().load_state_dict(state_dict)
        self._bases = {name: tuple(bases) for name, bases in state_dict["bases"].items()}
        self._ages = dict(state_dict["ages"])

    @override
    def _reset(self) -> None:
        self._bases, self._ages = {}, {}

    @override
    def _record(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if self.basis == "pretrained":
            for weight in (each for each in self._weights if each.name not in self._bases):
                with about(weight.name):
                    self._bases[weight.name] = self._directions(weight.weight)

    @override
    def _arguments(self) -> dict[str, Any]:
        return {"cumulative_ratio": self.cumulative_ratio, "basis": self.basis, "sides": self.sides}

    @override
    def _resume_with_other_arguments(self) -> None:
        if self.basis == "pretrained" and self._bases:
            super()._resume_with_other_arguments()
        self._reset()  # current directions can be found again

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._starts = [], {}

    def _directions(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Compute the input directions and, for both sides, the output directions."""
        sides = (weight,) if self.sides == "input" else (weight, weight.T)
        return tuple(principal_directions(side, self.cumulative_ratio) for side in sides)

    def _bases_of(self, name: str, weight: Tensor) -> tuple[Tensor, ...]:
        """Return the directions to use for this update and count it."""
        if self.basis == "pretrained":
            self._require_recorded(name, self._bases)
            return self._on_device(name, weight)
        if self.refresh_every == 1:
            return self._directions(weight)
        age = self._ages.get(name, 0)
        if age % self.refresh_every == 0:
            self._bases[name] = self._directions(weight)
        self._ages[name] = (age + 1) % self.refresh_every
        return self._on_device(name, weight)

    def _on_device(self, name: str, weight: Tensor) -> tuple[Tensor, ...]:
        # A restored state arrives before the weights have moved to their device.
        self._bases[name] = tuple(basis.to(weight.device) for basis in self._bases[name])
        return self._bases[name]

    def _project(self, name: str, weight: Tensor, update: Tensor) -> Tensor:
        """Project one update and note what that did to it."""
        with about(name):
            inputs, *outputs = self._bases_of(name, weight)
        inside = reading_from(update, inputs)  # both what is removed and what is measured are made of it
        projected = (
            project_out_both(update, inputs, *outputs)
            if outputs
            else project_out(update, inputs, self.strength, inside)
        )
        total = as_matrix(update).square().sum()
        removed = torch.where(total == 0, 0.0, as_matrix(update - projected).square().sum() / total)
        shape = [inputs.shape[1] / inputs.shape[0], inputs.shape[1]]
        shares = torch.stack([removed, principal_share(update, inputs, inside)])
        self._measured.append(torch.cat([shares.float(), shares.new_tensor(shape).float()]))
        return projected

    def _remember(self, pl_module: "pl.LightningModule") -> Callable[..., None]:
        """Make the hook that copies the weights before a step."""

        @torch.no_grad()
        def remember(optimizer: Optimizer, *_: Any) -> None:
            found = edited_weights([optimizer], pl_module, self.modules)
            self._starts |= {weight.name: weight.weight.clone() for weight in found}

        return remember

    def _project_step(self, pl_module: "pl.LightningModule") -> Callable[..., None]:
        """Make the hook that projects what a step has changed."""

        @torch.no_grad()
        def project_step(optimizer: Optimizer, *_: Any) -> None:
            for weight in edited_weights([optimizer], pl_module, self.modules):
                self._replay(weight, self._starts.pop(weight.name))

        return project_step

    def _replay(self, weight: EditedWeight, start: Tensor) -> None:
        if torch.equal(weight.weight, start):
            return
        projected = self._project(weight.name, start, weight.weight - start)
        if self.strength != 0:
            weight.weight.copy_(start + projected)


def _check_arguments(
    cumulative_ratio: float, strength: float, basis: str, refresh_every: int, sides: str, when: str
) -> None:
    """Refuse what no fit could use, quoting the argument as it was written."""
    if not 0 <= cumulative_ratio < 1:
        raise ValueError(f"`SparseProjection(cumulative_ratio={cumulative_ratio})` must lie in [0, 1).")
    if not 0 <= strength <= 1:
        raise ValueError(
            f"`SparseProjection(strength={strength})` must lie in [0, 1]. Use 0 to only measure and 1 for a hard cut."
        )
    for name, value, allowed in (
        ("basis", basis, ("current", "pretrained")),
        ("sides", sides, ("input", "both")),
        ("when", when, ("layer", "step")),
    ):
        if value not in allowed:
            raise ValueError(f"`SparseProjection({name}={value!r})` must be one of {', '.join(map(repr, allowed))}.")
    if refresh_every < 1:
        raise ValueError(f"`SparseProjection(refresh_every={refresh_every})` must be at least 1.")
    if basis == "pretrained" and refresh_every != 1:
        raise ValueError(
            f"`SparseProjection(basis='pretrained', refresh_every={refresh_every})` contradicts itself: the pretrained "
            "directions never change. Leave `refresh_every` out or use basis='current'."
        )
    if sides == "both" and strength != 1:
        raise ValueError(
            f"`SparseProjection(sides='both', strength={strength})`: cutting both sides is all or nothing. "
            "Set strength=1.0."
        )
