"""The ways in which shifts walk from zero to where they stop: Adam's, and Polyak's steps."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sphere_pl.editing.target_settings import TargetSettings

_AIM, _MOMENTUM = 0.5, 0.5  # of stop_loss, of the last step


class Walk(ABC):
    """The way of all shifts from zero.

    Args:
        base: The states, `[n, d]`.

    Attributes:
        shift: Where it is, `[n, d]`.
    """

    def __init__(self, base: Tensor) -> None:
        self.shift = torch.zeros_like(base, requires_grad=True)

    @abstractmethod
    def step(self, gradient: Tensor, loss: Tensor, bound: Tensor) -> None:
        """Take a step against the gradient `[n, d]` of the loss `[n]`; no shift exceeds its bound `[n, 1]`."""

    @torch.no_grad()
    def _hold(self, bound: Tensor) -> None:
        self.shift.mul_((bound / self.shift.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0))


class AdamWalk(Walk):
    """Adam's way, each shift in a unit of its own.

    Args:
        base: The states, `[n, d]`.
        settings: Learning rate and unit.
    """

    def __init__(self, base: Tensor, settings: TargetSettings) -> None:
        super().__init__(base)
        rate, unit = settings.step_size(base)
        self._unit = unit
        self._place = self.shift if unit is None else torch.zeros_like(base)  # in units
        self._optimizer = torch.optim.Adam([self._place], lr=rate)

    @torch.no_grad()
    def step(self, gradient: Tensor, loss: Tensor, bound: Tensor) -> None:
        """See `Walk`."""
        self._place.grad = gradient if self._unit is None else gradient * self._unit
        self._optimizer.step()
        if self._unit is not None:
            self.shift.copy_(self._place * self._unit)
        self._hold(bound)
        if self._unit is not None:
            self._place.copy_(self.shift / self._unit)


class PolyakWalk(Walk):
    """Steps whose length is what the loss has still to fall over the gradient's norm: no learning rate, no units.

    The loss is aimed below where a shift stops, so that it gets there. Each step takes part of the one before along.
    How long a step may be halves whenever the loss has risen: what is aimed at may be out of reach.

    Args:
        base: The states, `[n, d]`.
        stop_loss: Where a shift stops.
        longest: The longest step, as a share of the states' norms.
    """

    def __init__(self, base: Tensor, stop_loss: float, longest: float) -> None:
        super().__init__(base)
        self._aim, self._longest = _AIM * stop_loss, longest * base.norm(dim=1)
        self._last = torch.zeros_like(base)
        self._before = base.new_full((len(base),), torch.inf)  # the loss before the last step

    @torch.no_grad()
    def step(self, gradient: Tensor, loss: Tensor, bound: Tensor) -> None:
        """See `Walk`."""
        rose, self._before = loss > self._before, loss.clone()
        self._longest = torch.where(rose, self._longest / 2, self._longest)
        self._last[rose] = 0.0
        norm = gradient.norm(dim=1).clamp_min(1e-30)
        length = torch.minimum((loss - self._aim).clamp_min(0.0) / norm, self._longest)
        self._last = _MOMENTUM * self._last - gradient * (length / norm)[:, None]
        self.shift.add_(self._last)
        self._hold(bound)
