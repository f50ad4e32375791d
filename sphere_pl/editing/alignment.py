"""EAMET's alignment: shifts of a batch lie to one another as their keys do (arXiv 2505.11876).

Least squares carries a shift over to every key that is near its own. Where the shifts of near keys point elsewhere,
they are overwritten; aligned, they are carried over to what wants them.

Shapes: `n` shifts, `d_in` keys, `d` hidden size.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

_SMALLEST = 1e-12  # norm of a shift that has no direction yet


class Alignment:
    """How far the neighbourhoods of shifts are from those of their keys, as a penalty on the shifts.

    For each of them, the cosines to all others become a distribution by softmax; the penalty is the divergence of the
    shifts' distribution from the keys', `KL(P_r || P_k)`, and the mean squared difference of the cosines to the nearest
    neighbours by key.

    The project page of the authors settles these two parts and that the neighbours' residuals are fixed. They optimise
    one fact after the other and align it with those before; here a batch is optimised at once, and each shift is
    aligned with all others as they are at that step. How the two parts are weighed against each other, and how many
    neighbours count, is not settled by a public source: they weigh alike, and there are five.

    Args:
        keys: `[n, d_in]`.
        weight: Weight of the penalty.
        neighbors: How many nearest keys the second part looks at.
    """

    def __init__(self, keys: Tensor, weight: float, neighbors: int = 5) -> None:
        self.weight = weight
        self._cosines = normalize(keys.float()) @ normalize(keys.float()).T
        self._apart = ~torch.eye(len(keys), dtype=torch.bool, device=keys.device)
        most = min(neighbors, len(keys) - 1)
        self._nearest = self._cosines.masked_fill(~self._apart, -2.0).topk(most, dim=1).indices

    def penalty(self, shift: Tensor) -> Tensor:
        """The penalty of each shift `[n, d]`, `[n]`; 0 where it or all others have no direction yet."""
        if len(shift) < 2:
            return shift.sum(1) * 0
        there = shift.detach().norm(dim=1) > _SMALLEST
        safe = torch.where(there[:, None], shift, torch.ones_like(shift))  # whose direction has a gradient
        cosines = normalize(safe) @ normalize(safe).detach().T
        both = there[:, None] & there & self._apart
        wanted = self._logits(self._cosines, both).log_softmax(1)
        found = self._logits(cosines, both).log_softmax(1)
        divergence = torch.where(both, found.exp() * (found - wanted), 0.0).sum(1)
        squares = torch.where(both, (cosines - self._cosines).square(), 0.0)
        nearest = squares.gather(1, self._nearest).mean(1)
        return self.weight * torch.where(both.any(1), divergence + nearest, 0.0)

    def gradient(self, shift: Tensor) -> Tensor:
        """Gradient of each shift's own penalty, `[n, d]`; the others count as fixed."""
        with torch.enable_grad():
            leaf = shift.detach().requires_grad_()
            (found,) = torch.autograd.grad(self.penalty(leaf).sum(), leaf)
        return found

    @staticmethod
    def _logits(cosines: Tensor, both: Tensor) -> Tensor:
        """Finite throughout: a row of nothing but minus infinity has no distribution, and no gradient either."""
        return cosines.masked_fill(~both, -1e4)
