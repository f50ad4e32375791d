"""Target values z: for each request the hidden state that makes the model say the new object.

A shift is added to the output of the target block at the subject's last token and optimised until the model
predicts the new object after every context (ROME, Sec. 3.1; MEMIT, Sec. 4.2). A whole batch is optimised at once: what
no shift reaches runs once (`editing/target_rows.py`), each step only what the loss needs (`editing/objective.py`), and
a request that has converged leaves the batch.

The targets are those of the literal procedure, request by request, up to rounding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sphere_pl.data.request import EditRequest
from sphere_pl.editing.alignment import Alignment
from sphere_pl.editing.asked import Joint
from sphere_pl.editing.objective import Objective
from sphere_pl.editing.target_rows import subject_states, target_rows
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editing.walks import AdamWalk, PolyakWalk
from sphere_pl.model.language_model import LanguageModel


class Targets(NamedTuple):
    """What the optimisation found for `n` requests.

    Attributes:
        values: Target values z, float32 `[n, d]`.
        probability: Geometric mean probability of the target's tokens over contexts, `[n]`.
        loss: Final loss, `[n]`.
        steps: Adam steps taken, `[n]`.
        clamped: Whether the shift ended on the norm bound, `[n]`.
        outputs: What each of `L` edited matrices puts out at the target values, float32 `[n, L, d]`, where a norm lies
            between the matrices and the stream; `[n, 0, d]` where none does, as the values then say it all.
    """

    values: Tensor
    probability: Tensor
    loss: Tensor
    steps: Tensor
    clamped: Tensor
    outputs: Tensor

    def of_requests(self, joint: Joint) -> "Targets":
        """Those of `N` requests from those of `G` shifts; `probability` is that of the requests as it is."""
        shared = [each[joint.shift.to(each.device)] for each in self._replace(probability=self.loss)]
        return Targets(*shared)._replace(probability=self.probability)

    def anchored(self, norms: Tensor) -> "Targets":
        """Rescale each target value to a norm, `norms` `[n]`; the other entries stay those of the value as found.

        Example:
            >>> one = torch.ones(1)
            >>> targets = Targets(torch.tensor([[3.0, 4.0]]), one, one, one, one > 0, torch.empty(1, 0, 2))
            >>> targets.anchored(torch.tensor([10.0])).values
            tensor([[6., 8.]])
        """
        return self._replace(values=self.values * (norms.to(self.values) / self.values.norm(dim=1))[:, None])

    def unconverged(self, settings: TargetSettings) -> Tensor:
        """Which requests ran out of steps before their loss fell below `stop_loss`, `[n]`; NaN has not converged."""
        return ~(self.loss < settings.stop_loss)

    def scalars(self, settings: TargetSettings) -> dict[str, Tensor | float]:
        """What the optimisation reached, over the batch: means, and how many of its requests have not converged."""
        return {
            "probability": self.probability.mean(),
            "loss": self.loss.mean(),
            "steps": self.steps.mean(),
            "clamped": self.clamped.float().mean(),
            "unconverged": self.unconverged(settings).sum().float(),
        }


def optimize_targets(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    layer: int,
    settings: TargetSettings,
    joint: Joint | None = None,
    keys: Tensor | None = None,
) -> Targets:
    """Find the target values of a batch.

    Args:
        lm: The language model as it is before the batch.
        requests: The `P` phrasings: the requests themselves where each is asked once.
        contexts: Context templates; the first must be the empty one.
        layer: The target block: the deepest edited layer.
        settings: Optimisation settings.
        joint: Which phrasings are of one request, and which requests share a shift; none if None.
        keys: Of the phrasings, `[P, d_in]`, where `settings.align` asks for them.
    """
    joint = joint or Joint.separate(len(requests))
    groups, kl_groups = target_rows(lm, requests, contexts, layer, settings, joint)
    base = joint.per_shift(joint.per_request(subject_states(groups, len(requests))))  # [G, d]
    objective = Objective(lm, layer, groups, kl_groups, base, settings, joint)
    return minimize(objective, base, settings, alignment_of(keys, settings, joint)).of_requests(joint)


def alignment_of(keys: Tensor | None, settings: TargetSettings, joint: Joint) -> Alignment | None:
    """What aligns the shifts with the keys of the phrasings `[P, d_in]`; None where nothing is to be aligned."""
    if not settings.align or keys is None:
        return None
    return Alignment(joint.per_shift(joint.per_request(keys)), settings.align)


def minimize(
    objective: Objective, base: Tensor, settings: TargetSettings, alignment: Alignment | None = None
) -> Targets:
    """Walk with all shifts; each stops on its own.

    Args:
        objective: Loss and gradient of the shifts.
        base: What each is added to, float32 `[G, d]`.
        settings: Optimisation settings.
        alignment: Aligns the shifts with their keys; None leaves them.

    Returns:
        What was found for each of the `G` shifts; `probability` is that of each of the `N` requests.
    """
    n, of, longest = len(base), objective.joint.shift.to(base.device), objective.longest_step
    bound = settings.clamp * base.norm(dim=1, keepdim=True)  # [n, 1]
    walk = AdamWalk(base, settings) if settings.by_adam else PolyakWalk(base, settings.stop_loss, longest)
    found = torch.zeros_like(base)
    loss, steps, likelihood = base.new_zeros(n), base.new_zeros(n), base.new_zeros(len(of))
    active = torch.ones(n, dtype=torch.bool, device=base.device)
    # A shift that serves several phrasings has more to fit, and is given twice the steps.
    budget = settings.steps * (1 + (objective.joint.phrasings_of_each_shift > 1).long().to(base.device))
    for step in range(int(budget.max())):
        last: Tensor = torch.eq(budget, step + 1)
        with torch.set_grad_enabled(not bool(last[active].all())):  # nothing is done with the last gradient
            total, nll, find_gradient = objective(walk.shift)
        done = active & ((total < settings.stop_loss) | last)
        found[done], loss[done], steps[done] = walk.shift.detach()[done], total[done], step
        likelihood[done[of]] = nll[done[of]]
        active &= ~done
        if not active.any():
            break
        gradient = find_gradient()
        if done.any():
            objective.keep(active)
        if alignment is not None:
            gradient = gradient + alignment.gradient(walk.shift)
        walk.step(gradient, total, bound)
    clamped = found.norm(dim=1) >= 0.999 * bound.squeeze(1)
    return Targets(base + found, torch.exp(-likelihood), loss, steps, clamped, base.new_empty(n, 0, base.shape[1]))
