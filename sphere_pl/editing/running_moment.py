"""A second moment that is summed up until more text would hardly change the null space.

For a moment `A` of N keys and a level `τ`, its own mean eigenvalue, `τ (A + τ I)⁻¹` is a soft projector onto the
directions that the N keys hardly use. It is right as soon as keys that it has not seen reach into these directions no
further than those it was made from: as long as there are too few, new keys reach further, by 2 to 6 times with as many
keys as dimensions. The test needs one Cholesky factor, where a comparison of two projectors would need the eigenvectors
of both.
"""

import torch
from torch import Tensor

_SAMPLED = 512  # keys that a test looks at
_BLOCKS = 4  # of columns: a product K.T @ K is symmetric, and five eighths of it suffice


class RunningMoment:
    """The sum of `k kᵀ` over the keys at one matrix, with the test of whether they suffice.

    Sums are kept in float64: single precision over many tokens would blur the small eigenvalues that the null-space
    threshold looks at.

    Args:
        tolerance: How much further than known keys, as a share, new ones may reach into the null space.
        home: Where the sum is held; on the keys' device if None.

    Attributes:
        count: Keys in the sum.
        excess: What the last test found; None before the first.
        settled: Whether the keys suffice.
    """

    def __init__(self, tolerance: float, home: torch.device | None = None) -> None:
        self.tolerance, self.home = tolerance, home
        self.count, self.settled = 0, False
        self.excess: float | None = None
        self._sum: Tensor | None = None
        self._seen = torch.empty(0, 0)  # some of the keys in the sum
        self._batches = 0

    def take(self, keys: Tensor) -> None:
        """Add further keys, float32 `[tokens, d_in]`, unless there are enough.

        At each doubling of what has been taken they are first held against the sum.
        """
        if self.settled:
            return
        sample = keys[:: max(1, len(keys) // _SAMPLED)]
        if self._sum is not None and self._batches & (self._batches - 1) == 0:
            self.excess = self._excess(sample)
            self.settled = self.excess <= self.tolerance
            if self.settled:
                return
        product = gram(keys).to(self.home or keys.device)
        self._sum = product.double() if self._sum is None else self._sum.add_(product)
        self.count, self._batches, self._seen = self.count + len(keys), self._batches + 1, sample

    def moment(self) -> Tensor:
        """`E[k kᵀ]` of the keys so far, float32 `[d_in, d_in]`."""
        if self._sum is None:
            raise RuntimeError("No keys have been taken.")
        return (self._sum / self.count).float()

    def _excess(self, unseen: Tensor) -> float:
        """How much further than keys of the sum these reach into its soft null space, as a share."""
        moment = self.moment().to(unseen.device)
        level = moment.diagonal().mean().clamp_min(torch.finfo(moment.dtype).tiny)
        moment.diagonal().add_(level)
        factor = torch.linalg.cholesky(moment)
        known, new = (_reach(keys, factor) for keys in (self._seen, unseen))
        return float(new / known) - 1.0


def _reach(keys: Tensor, factor: Tensor) -> Tensor:
    """Mean of `kᵀ (A + τ I)⁻¹ k` over keys `[n, d_in]`, from the Cholesky factor."""
    solved: Tensor = torch.linalg.solve_triangular(factor, keys.T, upper=False)
    return solved.square().sum() / len(keys)


def gram(keys: Tensor) -> Tensor:
    """`KᵀK` of keys `[tokens, d_in]`, of which only the blocks on and right of the diagonal are computed."""
    width = keys.shape[1]
    step = -(-width // _BLOCKS)
    product = keys.new_empty(width, width)
    for start in range(0, width, step):
        stop = min(start + step, width)
        product[start:stop, start:] = keys[:, start:stop].T @ keys[:, start:]
        product[stop:, start:stop] = product[start:stop, stop:].T
    return product
