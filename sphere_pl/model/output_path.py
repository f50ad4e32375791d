"""What lies between an edited matrix and the residual stream: a norm, a factor, or nothing.

A matrix's output `u` adds `scale * g * u / rms(u)` to the stream where its family puts an RMS norm with the gains `g`
there. All that can be added that way lies on an ellipsoid, so a residual of the stream cannot be had in general: what
the matrix is asked for is an output whose gain comes closest.

Shapes: `n` requests, `d` hidden size.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

_HALVINGS = 60  # of an interval that holds the multiplier: to the last bit of float64
_HOLD = 1e-6  # weight of staying near a known output, as a share of the mean squared gain


class OutputPath(NamedTuple):
    """What the residual stream gains by a matrix's output.

    Attributes:
        norm: The RMS norm that the output passes through; None if there is none.
        scale: The factor that it is multiplied by after that.
    """

    norm: nn.Module | None = None
    scale: float = 1.0

    @torch.no_grad()
    def gain(self, output: Tensor) -> Tensor:
        """What the stream gains by outputs `[n, d]`, float32.

        Example:
            >>> OutputPath(None, 0.5).gain(torch.tensor([[2.0, 4.0]]))
            tensor([[1., 2.]])
        """
        if self.norm is not None:
            weight = next(self.norm.parameters(), output)
            output = self.norm(output.to(weight)).to(output.device)
        return output.float() * self.scale

    @torch.no_grad()
    def gains(self, like: Tensor) -> Tensor:
        """The factor of each coordinate after the division by the rms, float32 `[d]`, read off the norm itself."""
        ones = torch.full((1, like.shape[-1]), 64.0, device=like.device)  # so large that the norm's epsilon is nothing
        return self.gain(ones)[0]

    @torch.no_grad()
    def nearest_output(self, gain: Tensor, near: Tensor) -> Tensor:
        """The outputs that the stream gains most nearly `gain` by, float32 `[n, d]`.

        Exact where `gain` can be had, and the least squares of the stream where it cannot. Coordinates whose gain is
        nearly 0 tell nothing about the output: they stay as they are in `near`.

        Args:
            gain: What the stream should gain, `[n, d]`.
            near: Outputs nearby, `[n, d]`; the result has the rms of these.
        """
        if self.norm is None:
            return gain / self.scale
        wanted, close, gains = (each.cpu().double() for each in (gain, near, self.gains(near)))  # few numbers, exact
        rms = close.square().mean(1, keepdim=True).sqrt().clamp_min(1e-30)
        return (_on_sphere(gains, wanted, close / rms) * rms).to(near)


DIRECT = OutputPath()


def _on_sphere(gains: Tensor, wanted: Tensor, near: Tensor) -> Tensor:
    """Minimise `||gains * v - wanted||² + hold * ||v - near||²` over all `v` with an rms of 1, `[n, d]`.

    The stationary points are `v = (gains * wanted + hold * near) / (gains² + hold + m)`; the global minimum is that
    whose multiplier `m` lies above `-min(gains² + hold)`, where the norm of `v` falls in `m`: it is found by bisection.

    Example:
        >>> gains = torch.tensor([2.0, 0.5], dtype=torch.float64)
        >>> v = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
        >>> _on_sphere(gains, gains * v, torch.ones(1, 2, dtype=torch.float64))
        tensor([[ 1.0000, -1.0000]], dtype=torch.float64)
    """
    hold = _HOLD * gains.square().mean()
    top, bottom = gains * wanted + hold * near, gains.square() + hold  # [n, d], [d]
    root = wanted.shape[1] ** 0.5
    low = -bottom.min().expand(len(wanted), 1)
    high = (top.norm(dim=1, keepdim=True) / root).clamp_min(1e-300)  # there the norm is below the root for sure
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        long = (top / (bottom + middle)).norm(dim=1, keepdim=True) > root
        low, high = torch.where(long, middle, low), torch.where(long, high, middle)
    found: Tensor = top / (bottom + high)
    scale: Tensor = root / found.norm(dim=1, keepdim=True)
    return found * scale
