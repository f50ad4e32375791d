"""ROME: one fact, one matrix, a rank-one update (Meng et al., NeurIPS 2022, arXiv 2202.05262)."""

from typing import ClassVar

import torch
from torch import Tensor

from sphere_pl.methods.base import Method, State
from sphere_pl.methods.functional import moment_factor, rome_update, whiten
from sphere_pl.methods.problem import LayerProblem


class ROME(Method):
    """Rank-one editing of a single layer, one fact at a time.

    Deviations from the authors' code:

    - The shift that finds the target is added to the block's output and not to the MLP's. In a block without a norm
      after the MLP these are the same shift; the norms that clamp and decay compare it with are the block output's.
    - `k` is the key averaged over contexts everywhere, as in the paper's Eq. 2; the code divides by `kᵀ u` of the plain
      prompt's key.

    The authors use 20 sampled contexts beside the plain prompt, all weighed alike: `model.contexts: 20`.

    Args:
        whiten: Whether `u = C⁻¹ k`, with C the second moment of ordinary keys (`mom2_adjustment`), or `u = k`. The
            SPHERE authors set it to false for LLaMA3-8B and Qwen2.5-7B.
    """

    depth: ClassVar[float | None] = 1 / 6  # 5 of 32 in LLaMA3-8B
    max_layers: ClassVar[int | None] = 1
    max_batch_size: ClassVar[int | None] = 1
    plain_share: ClassVar[float | None] = None

    def __init__(self, whiten: bool = True) -> None:
        self.whiten = self.needs_second_moment = whiten

    def initial_state(self, weight: Tensor, second_moment: Tensor | None) -> State:
        """The Cholesky factor of the second moment, if `u` is to be whitened."""
        if not self.whiten:
            return {}
        if second_moment is None:
            raise ValueError("ROME(whiten=True) needs the second moment of the keys.")
        return {"factor": moment_factor(second_moment.to(weight.device, torch.float64, copy=True))}

    def update(self, problem: LayerProblem, state: State) -> Tensor:
        """See `rome_update`."""
        wide = problem.keys.double()
        direction = whiten(wide, state["factor"]) if self.whiten else wide
        return rome_update(wide, problem.residuals.double(), direction).to(problem.weight.dtype)
