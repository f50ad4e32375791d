"""Target values where a norm lies between the edited matrices and the residual stream (Gemma 2 and 3, OLMo 2, ...).

What such a matrix adds to the stream lies on an ellipsoid, so that a state found by a shift of the stream cannot be had
as a rule. The shifts are therefore added to the outputs of the matrices themselves (where ROME adds its own), of all
edited layers at once, and the target value is the state that they lead to: it can be had by construction. A shift is
measured in units of the rms of the output that it is added to, the size that the norm divides by.

Shapes: `n` requests, `L` edited layers, `d` hidden size.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from sphere_pl.data.request import EditRequest
from sphere_pl.editing.asked import Joint
from sphere_pl.editing.objective import Objective, Pass, one_pass
from sphere_pl.editing.representations import capture_output
from sphere_pl.editing.target_rows import Rows, target_rows
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editing.targets import Targets, alignment_of, minimize
from sphere_pl.model.attention import gradient_attention, packs
from sphere_pl.model.families import EditSite
from sphere_pl.model.language_model import LanguageModel


def optimize_outputs(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    sites: Sequence[EditSite],
    settings: TargetSettings,
    joint: Joint | None = None,
    keys: Tensor | None = None,
) -> Targets:
    """Find the target values of a batch, and what each edited matrix puts out there.

    Args:
        lm: The language model as it is before the batch.
        requests: The `P` phrasings: the requests themselves where each is asked once.
        contexts: Context templates; the first must be the empty one.
        sites: The matrices to edit, shallow to deep.
        settings: Optimisation settings; the learning rate counts in units of the outputs' rms.
        joint: Which phrasings are of one request, and which requests share shifts; none if None.
        keys: Of the phrasings, `[P, d_in]`, where `settings.align` asks for them.
    """
    joint = joint or Joint.separate(len(requests))
    entry = sites[0].layer - 1
    groups, kl_groups = target_rows(lm, requests, contexts, entry, settings, joint)
    plain = [one_pass(lm, [rows], packs(lm)) for rows in groups]
    width, device = groups[0].hidden.shape[-1], groups[0].hidden.device
    blank = torch.zeros(int(joint.shift[-1]) + 1, len(sites), width, device=device)
    outputs, _ = _reached(lm, sites, groups, plain, blank, joint)
    rms = outputs.square().mean(2, keepdim=True).sqrt().clamp_min(1e-30)  # [G, L, 1]
    base = (outputs / rms).flatten(1)
    objective = _OutputObjective(lm, sites, groups, kl_groups, rms, base, settings, joint)
    found = minimize(objective, base, settings, alignment_of(keys, settings, joint))
    shifts = (found.values - base).view_as(outputs) * rms
    reached, values = _reached(lm, sites, groups, plain, shifts, joint)
    return found._replace(values=values, outputs=reached).of_requests(joint)


class _OutputObjective(Objective):
    """Loss and gradient as functions of shifts of the matrices' outputs, `[G, L * d]` in units of their rms."""

    longest_step = 0.025  # with a state's 0.15 much else is moved as well (docs/speed.md)

    def __init__(
        self,
        lm: LanguageModel,
        sites: Sequence[EditSite],
        groups: list[Rows],
        kl_groups: list[Rows],
        rms: Tensor,
        base: Tensor,
        settings: TargetSettings,
        joint: Joint,
    ) -> None:
        self.sites, self.rms = sites, rms
        super().__init__(lm, sites[0].layer - 1, groups, kl_groups, base, settings, joint)

    def states(self, each: Pass, shift: Tensor) -> Tensor:
        """Output of the last block at the predicted places `[t, d]`, the shifts added at the subjects."""
        shifts = shift.unflatten(1, (len(self.sites), -1)) * self.rms[: len(shift)]
        with gradient_attention(self.lm), _shifting(self.sites, each, shifts):
            hidden = self.lm.run(each.hidden, each.calls, self.layer + 1, self.lm.n_layers)
        return hidden.flatten(0, 1).index_select(0, each.where.to(hidden.device))


@contextmanager
def _shifting(sites: Sequence[EditSite], each: Pass, shifts: Tensor) -> Iterator[None]:
    """Add `shifts[:, l]`, float32 `[G, L, d]`, to the output of matrix `l` at the subjects of a pass."""
    with ExitStack() as stack:
        for place, site in enumerate(sites):

            def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor, place: int = place) -> Tensor:
                tokens = output.flatten(0, -2)
                subjects, owner = each.subjects.to(output.device), each.owner.to(shifts.device)
                shifted = tokens[subjects] + shifts[:, place].index_select(0, owner).to(output.device)
                return tokens.index_copy(0, subjects, shifted.to(output.dtype)).view_as(output)

            stack.callback(site.module.register_forward_hook(hook).remove)
        yield


@torch.no_grad()
def _reached(
    lm: LanguageModel,
    sites: Sequence[EditSite],
    groups: Sequence[Rows],
    passes: Sequence[Pass],
    shifts: Tensor,
    joint: Joint,
) -> tuple[Tensor, Tensor]:
    """The matrices' outputs `[G, L, d]` and the last edited block's `[G, d]` with shifts, at the plain subjects."""
    outputs = shifts.new_zeros(len(joint.request), *shifts.shape[1:])
    values = torch.zeros_like(outputs[:, 0])
    for rows, each in zip(groups, passes, strict=True):
        if not rows.plain.any():
            continue
        with gradient_attention(lm), _shifting(sites, each, shifts), ExitStack() as stack:
            seen = [stack.enter_context(capture_output(site.module)) for site in sites]
            hidden = lm.run(each.hidden, each.calls, sites[0].layer, sites[-1].layer + 1)
        chosen, subjects = rows.asked[rows.plain], each.subjects[rows.plain]
        for place, (output,) in enumerate(seen):
            at = output.flatten(0, -2)[subjects.to(output.device)]
            outputs[chosen, place] = at.float().to(outputs.device)
        values[chosen] = hidden.flatten(0, 1)[subjects.to(hidden.device)].float().to(values.device)
    return joint.per_shift(joint.per_request(outputs)), joint.per_shift(joint.per_request(values))
