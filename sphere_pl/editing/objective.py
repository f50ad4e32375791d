"""Loss and gradient of the shifts that target values are found by, in as few forward passes as the model allows.

- Each pass runs only the blocks above the target layer, for the columns from the subject on; rows of all lengths are
  packed into it where the model takes packed rows.
- The language-model head is applied at target positions only, to few of them at a time: logits are large.
- A request that has left the batch is not masked: its rows are dropped, and the passes filled again.

Shapes: `G` shifts, `N` requests, `d` hidden size; `t` predicted places of one pass.
"""

from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from sphere_pl.editing.asked import Joint
from sphere_pl.editing.target_rows import Rows, select
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.model.attention import gradient_attention, packs
from sphere_pl.model.batching import LOGITS_AT_ONCE
from sphere_pl.model.block_calls import BlockCalls
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.packing import Suffixes, pack_calls


class Pass(NamedTuple):
    """Groups of rows that go through the model in one forward pass, `tokens` in all, `t` of them predicted from.

    Attributes:
        calls: How the blocks are called.
        hidden: Output of the target block without the shift, `[1, tokens, d]` if packed, else that of the only group.
        subjects: Place of each row's subject among the tokens, `[rows]`.
        owner: Shift of each row, `[rows]`.
        where: Place of the tokens predicted from, `[t]`, group after group.
        predicted: Phrasing of each of these, `[t]`; for the divergence the shift.
        labels: The tokens to predict at the first `t'` of them, `[t']`.
        weights: Weight of each, `[t']`.
        reference: Log-probabilities without the shift at the others, `[t - t', vocabulary]`.
    """

    calls: BlockCalls
    hidden: Tensor
    subjects: Tensor
    owner: Tensor
    where: Tensor
    predicted: Tensor
    labels: Tensor
    weights: Tensor
    reference: Tensor


def one_pass(lm: LanguageModel, groups: list[Rows], packed: bool) -> Pass:
    """One forward pass through some groups, those compared with a reference last; one group if not `packed`."""
    starts = [0, *accumulate(rows.ids.numel() for rows in groups)]
    subjects, where = [], []
    for start, rows in zip(starts, groups, strict=False):
        columns = rows.ids.shape[1]
        subjects.append(start + columns * torch.arange(len(rows.ids), device=rows.ids.device) + rows.subject)
        where.append(start + columns * rows.where[0] + rows.where[1])
    hidden, calls = groups[0].hidden, groups[0].calls
    if packed:
        hidden = torch.cat([rows.hidden.flatten(0, 1) for rows in groups])[None]
        calls = pack_calls(lm, [Suffixes(rows.ids, rows.positions, rows.prefix, rows.calls) for rows in groups])
    asked = [rows for rows in groups if rows.reference is None]
    references = [rows.reference for rows in groups if rows.reference is not None]
    return Pass(
        calls=calls,
        hidden=hidden,
        subjects=torch.cat(subjects),
        owner=torch.cat([rows.owner for rows in groups]),
        where=torch.cat(where),
        predicted=torch.cat([rows.asked[rows.where[0]] for rows in groups]),
        labels=torch.cat([rows.labels for rows in asked]) if asked else groups[0].labels[:0],
        weights=torch.cat([rows.weights for rows in asked]) if asked else groups[0].weights[:0],
        reference=torch.cat(references) if references else hidden.new_zeros(0, lm.config.vocab_size),
    )


class Objective:
    """Loss and gradient of every shift that is still active.

    Args:
        lm: The language model as it is before the batch.
        layer: The target block, after which the shifts are added.
        groups: Rows that end in a target, one group for each length.
        kl_groups: Rows that the divergence from the model without shifts is measured on.
        base: What each shift is added to, `[G, d]`.
        settings: Optimisation settings.
        joint: Which phrasings are of one request, and which requests share a shift.

    Attributes:
        longest_step: Of a Polyak step, as a share of the norm of what the shift is added to.
    """

    longest_step = 0.15

    def __init__(
        self,
        lm: LanguageModel,
        layer: int,
        groups: list[Rows],
        kl_groups: list[Rows],
        base: Tensor,
        settings: TargetSettings,
        joint: Joint,
    ) -> None:
        self.lm, self.layer, self.joint, self._packs = lm, layer, joint, packs(lm)
        self.base_norm, self.width, self.settings = base.norm(dim=1), base.shape[1], settings
        self.groups = groups + [rows._replace(reference=self._reference(rows)) for rows in kl_groups]
        self.passes = self._filled()

    @torch.no_grad()
    def _reference(self, rows: Rows) -> Tensor:
        """Log-probabilities at the predicted places without the shift, `[t, vocabulary]`."""
        only = one_pass(self.lm, [rows], self._packs)
        states = self.states(only, only.hidden.new_zeros(int(rows.owner.max()) + 1, self.width))
        return torch.log_softmax(self.lm.logits(states), dim=-1)

    def __call__(self, shift: Tensor) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
        """Evaluate all active shifts.

        Returns:
            Loss of the phrasing of each shift that is worst off `[G]`, the likelihood part of each request `[N]`, and
            what finds the gradient of the sum of the requests' losses `[G, d]`, to be called once where it is wanted.
            Entries of shifts that have left are meaningless (losses) or zero (gradient of the likelihood).
        """
        decay = self.settings.decay(shift, self.base_norm)
        gradient = _Gradient(shift, decay)
        nll, divergence = shift.new_zeros(len(self.joint.request)), shift.new_zeros(len(shift))
        for each in self.passes:
            gradient.flush()
            states, cut = self.states(each, shift), len(each.labels)
            losses, state_gradient = self._by_parts(states, each)
            gradient.add(states, state_gradient)
            losses = losses.to(nll.device)
            nll.index_add_(0, each.predicted[:cut], losses[:cut])
            divergence.index_add_(0, each.predicted[cut:], losses[cut:])
        nll = nll / nll.new_tensor(self.joint.weights)
        return self.joint.worst(nll) + divergence + decay.detach(), self.joint.per_request(nll), gradient

    def states(self, each: Pass, shift: Tensor) -> Tensor:
        """Output of the last block at the predicted places `[t, d]`, the shift added at the subjects."""
        tokens = each.hidden.flatten(0, 1)
        shifted = tokens[each.subjects] + shift.index_select(0, each.owner)  # float32 until it enters the model
        hidden = tokens.index_copy(0, each.subjects, shifted.to(tokens.dtype)).view_as(each.hidden)
        with gradient_attention(self.lm):
            hidden = self.lm.run(hidden, each.calls, self.layer + 1, self.lm.n_layers)
        return hidden.flatten(0, 1).index_select(0, each.where.to(hidden.device))

    def _by_parts(self, states: Tensor, each: Pass) -> tuple[Tensor, Tensor]:
        """Loss of each predicted place `[t]`, and the gradient of their sum at the states `[t, d]`.

        Logits are large: few rows of them exist at a time, and their part of the gradient is taken at once.
        """
        losses = states.new_zeros(len(states), dtype=torch.float32)
        state_gradient = torch.zeros_like(states)
        size = max(1, LOGITS_AT_ONCE // self.lm.config.vocab_size)
        for start in range(0, len(states), size):
            some = slice(start, start + size)
            leaf = states[some].detach().requires_grad_(states.requires_grad)
            logits = self.lm.logits(leaf)
            found, of_logits = _losses(each, logits.detach(), start, self.settings.kl_weight)
            losses[some] = found.to(losses.device)
            if logits.requires_grad:
                state_gradient[some] = torch.autograd.grad(logits, leaf, of_logits)[0]
        return losses, state_gradient

    def keep(self, active: Tensor) -> None:
        """Drop the rows of shifts that have left the batch: those where `active` `[G]` is false."""
        self.groups = [select(self.lm, rows, active[rows.owner]) for rows in self.groups if active[rows.owner].any()]
        self.passes = self._filled()

    def _filled(self) -> list[Pass]:
        """Forward passes filled with groups; a model that does not take packed rows has a pass for each group."""
        filled: list[list[Rows]] = []
        room = 0
        for rows in self.groups:
            size = rows.ids.numel()
            if not filled or size > room or not self._packs:
                filled.append([])
                room = self.settings.tokens_at_once
            filled[-1].append(rows)
            room -= size
        return [one_pass(self.lm, each, self._packs) for each in filled]


class _Gradient:
    """The gradient of a sum of losses, `[G, d]`; that of the last pass is found when it is asked for.

    Where every shift stops nobody asks. What the passes before it keep for their gradients is let go one by one.

    Args:
        shift: What all is differentiated by.
        decay: The part of the losses that no pass is needed for, `[G]`.
    """

    def __init__(self, shift: Tensor, decay: Tensor) -> None:
        self._shift = shift
        self._sum = torch.autograd.grad(decay.sum(), shift)[0] if decay.requires_grad else torch.zeros_like(shift)
        self._open: tuple[Tensor, Tensor] | None = None

    def add(self, states: Tensor, state_gradient: Tensor) -> None:
        """Add what states `[t, d]` have with a gradient `state_gradient` of their own."""
        self._open = (states, state_gradient) if states.requires_grad else None

    def flush(self) -> None:
        """Find the gradient of the last pass now, which makes room for the next one."""
        if self._open is not None:
            states, state_gradient = self._open
            self._open = None
            self._sum += torch.autograd.grad(states, self._shift, state_gradient)[0]

    def __call__(self) -> Tensor:
        """All of it."""
        self.flush()
        return self._sum


def _losses(each: Pass, logits: Tensor, start: int, kl_weight: float) -> tuple[Tensor, Tensor]:
    """Of the predicted places from `start` on: negative log-likelihoods of labels, then KL(shifted || unshifted).

    The gradient is written out: logits are large, and every operation that autograd takes for it goes through them.

    Returns:
        Losses `[t]`, and the gradient of their sum at the logits `[t, vocabulary]`.
    """
    stop, cut = start + len(logits), len(each.labels)
    labels, weights = (part[start:stop].to(logits.device) for part in (each.labels, each.weights))
    reference = each.reference[max(0, start - cut) : max(0, stop - cut)].to(logits.device)
    logp = torch.log_softmax(logits, dim=-1)
    gradient = logp.exp()
    asked, watched = gradient[: len(labels)], gradient[len(labels) :]
    likelihood = -logp[: len(labels)].gather(1, labels[:, None]).squeeze(1) * weights
    asked.mul_(weights[:, None]).scatter_add_(1, labels[:, None], -weights[:, None])
    excess = logp[len(labels) :].sub_(reference)
    divergence = torch.linalg.vecdot(watched, excess)
    watched.mul_(excess.sub_(divergence[:, None])).mul_(kl_weight)
    return torch.cat([likelihood, divergence * kl_weight]), gradient
