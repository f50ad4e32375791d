"""Target values z: for each request the hidden state that makes the model say the new object.

A shift is added to the output of the target block at the subject's last token and optimised by Adam until the model
predicts the new object after every context (ROME, Sec. 3.1; MEMIT, Sec. 4.2). A whole batch is optimised at once:

- Columns before the subject's last token cannot see the shift (causality). They run once; their keys and values stay
  in a `FrozenPrefix`.
- Blocks up to the target layer run once for the columns from the subject on; each step runs only the blocks above.
- The language-model head is applied at target positions only.
- A request that has converged leaves the batch: the rows are compacted, not masked.

The targets are those of the literal procedure, request by request, up to rounding.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from sphere_pl.data.request import EditRequest
from sphere_pl.editing.alignment import Alignment
from sphere_pl.editing.asked import Joint
from sphere_pl.errors import UserError
from sphere_pl.model.attention import gradient_attention, packs
from sphere_pl.model.laid_out import laid_out
from sphere_pl.model.language_model import BlockCalls, FrozenPrefix, LanguageModel, run_prefix
from sphere_pl.model.packing import Suffixes, pack_calls
from sphere_pl.model.tokens import (
    LOGITS_AT_ONCE,
    MOST_TOKENS,
    Tokens,
    in_context,
    kl_prompt,
    micro_batches,
    pad,
    tokenize,
)

Units = Literal["state", "absolute"]
Optimizer = Literal["adam", "polyak"]
_AIM, _MOMENTUM, _LONGEST = 0.5, 0.5, 0.15  # of stop_loss, of the last step, of the state's norm
LEARNING_RATE = 0.05  # of a state's root mean square: what three models of 135 to 500 million parameters share


@dataclass(frozen=True)
class TargetSettings:
    """How targets are optimised. The defaults do in any model what they do in one whose states are ten times as large.

    Args:
        steps: Evaluations of the loss; the last one is not followed by a step, so 25 evaluations are 24 steps.
        learning_rate: Adam's, in `units`; if None, that found for the model, or 0.05 of the state's root mean square.
        clamp: The shift's norm is at most this many times the norm of the state it is added to.
        weight_decay: Weight of `||shift|| / ||state||`, or in absolute units of MEMIT's `||shift|| / ||state||²`.
        kl_weight: Weight of the divergence on "{subject} is a".
        stop_loss: A request whose loss is below this has converged.
        max_tokens: Tokens in one forward pass; a run without it takes as many as its memory allows, 256 to 4096.
        anchor: Whether each target is rescaled to the norm that the unedited model's state has at its place
            (norm-anchored targets, arXiv 2602.02543): edits that build on earlier ones cannot make it grow then.
        optimizer: `adam` as in the papers, or `polyak`: steps against the gradient that are as long as the loss has
            still to fall over the gradient's norm (Polyak 1987, with half of the step before). It needs no learning
            rate and about half as many evaluations; docs/speed.md compares what they reach.
        same_key: Requests whose keys have at least this cosine are edited with one target for all of them, since one
            key has one value (MEMIT-Merge, arXiv 2502.07322); above 1 none are.
        units: What a step is measured in: `state`, the root mean square of the state that it is added to, or
            `absolute`, as the papers' learning rates are. If None, a `learning_rate` that is given is absolute.
        align: Weight of EAMET's alignment (arXiv 2505.11876), which lets the shifts of a batch lie to one another as
            their keys do; 0 leaves it out. It has no part in when a request has converged.
    """

    steps: int = 25
    learning_rate: float | None = None
    clamp: float = 1.0
    weight_decay: float = 0.0
    kl_weight: float = 0.3
    stop_loss: float = 0.4
    max_tokens: int | None = None
    anchor: bool = False
    same_key: float = 0.85
    optimizer: Optimizer = "adam"
    units: Units | None = None
    align: float = 0.0

    @property
    def tokens_at_once(self) -> int:
        """Tokens in one forward pass; the most that a run takes where nothing has settled it."""
        return self.max_tokens or MOST_TOKENS

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("steps", "learning_rate", "clamp", "max_tokens"):
            given = getattr(self, name)
            if given is not None and given <= 0:
                raise UserError(f"`targets.{name}={given}` must be above 0.")
        for name in ("weight_decay", "kl_weight", "stop_loss", "align"):
            if getattr(self, name) < 0:
                raise UserError(f"`targets.{name}={getattr(self, name)}` must be at least 0.")
        if self.optimizer not in get_args(Optimizer):
            raise UserError(f"`targets.optimizer={self.optimizer!r}` must be adam or polyak.")
        if self.optimizer == "polyak" and self.learning_rate is not None:
            raise UserError("`targets.optimizer=polyak` has no `targets.learning_rate`: leave one of them out.")
        if self.optimizer == "polyak" and self.align:
            raise UserError(
                "`targets.align` has no part in the loss that `targets.optimizer=polyak` takes its steps from. Set the "
                "optimizer to adam, or leave `targets.align` at 0."
            )
        if self.units not in (None, *get_args(Units)):
            raise UserError(f"`targets.units={self.units!r}` must be state or absolute.")
        if self.units == "absolute" and self.learning_rate is None:
            raise UserError("`targets.units=absolute` needs the `targets.learning_rate` that it counts in.")

    @property
    def absolute(self) -> bool:
        """Whether steps are measured in absolute units."""
        return (self.units or ("state" if self.learning_rate is None else "absolute")) == "absolute"

    @property
    def rate_is_open(self) -> bool:
        """Whether there is a learning rate, and it is left to be found."""
        return self.learning_rate is None and self.optimizer == "adam"

    @property
    def rate(self) -> float:
        """Adam's learning rate, in `units`."""
        return LEARNING_RATE if self.learning_rate is None else self.learning_rate

    def step_size(self, base: Tensor) -> tuple[float, Tensor | None]:
        """Adam's learning rate for shifts of the states `[n, d]`, and the unit `[n, 1]` of each; None is 1."""
        return self.rate, None if self.absolute else base.square().mean(1, keepdim=True).sqrt().clamp_min(1e-30)

    def decay(self, shift: Tensor, base_norm: Tensor) -> Tensor:
        """The penalty `[n]` of shifts `[n, d]` of states of the norms `[n]`."""
        # The norm is not squared in MEMIT's code; its gradient at zero is taken as zero, as torch does.
        scale: Tensor = base_norm**2 if self.absolute else base_norm
        decay: Tensor = self.weight_decay * shift.norm(dim=1) / scale
        return decay


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


class Rows(NamedTuple):
    """Sequences from the subject's last token on, ready to be run through the blocks above the target layer.

    All tensors but those of `prefix` and `calls`, and `reference`, lie where the target block does.

    Attributes:
        asked: Phrasing of each row, `[rows]`; of rows that watch the divergence the shift.
        owner: Shift of each row, `[rows]`.
        plain: Whether the row's context is the empty one, `[rows]`.
        ids: Tokens from the subject's last one on, `[rows, columns]`.
        mask: Attention mask over prefix and suffix, `[rows, prefix + columns]`.
        positions: Position of each suffix token, `[rows, columns]`.
        subject: Column of the subject's last token, `[rows]`: the first one, unless the model runs whole prompts.
        prefix: Keys and values of the columns before.
        hidden: Output of the target block without the shift, `[rows, columns, d]`.
        calls: How the blocks are called for these rows.
        where: Row and column of each predicted token, `[2, t]`.
        labels: The tokens to predict, `[t]`.
        weights: Weight of each in the loss of its shift, `[t]`.
        reference: Log-probabilities at these places without the shift, `[t, vocabulary]`, where the divergence from
            them is the loss; None where it is the likelihood of the labels.
    """

    asked: Tensor
    owner: Tensor
    plain: Tensor
    ids: Tensor
    mask: Tensor
    positions: Tensor
    subject: Tensor
    prefix: FrozenPrefix
    hidden: Tensor
    calls: BlockCalls
    where: Tensor
    labels: Tensor
    weights: Tensor
    reference: Tensor | None = None


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
    joint, most = joint or Joint.separate(len(requests)), settings.tokens_at_once
    groups = rewrite_rows(lm, requests, contexts, layer, most, joint)
    kl_groups = kl_rows(lm, joint.first_of_each_shift(requests), layer, most) if settings.kl_weight else []
    base = joint.per_shift(joint.per_request(_subject_states(groups, len(requests))))  # [G, d]
    objective = Objective(lm, layer, groups, kl_groups, base, settings, joint)
    return minimize(objective, base, settings, alignment_of(keys, settings, joint)).of_requests(joint)


def alignment_of(keys: Tensor | None, settings: TargetSettings, joint: Joint) -> Alignment | None:
    """What aligns the shifts with the keys of the phrasings `[P, d_in]`; None where nothing is to be aligned."""
    if not settings.align or keys is None:
        return None
    return Alignment(joint.per_shift(joint.per_request(keys)), settings.align)


def minimize(
    objective: "Objective", base: Tensor, settings: TargetSettings, alignment: Alignment | None = None
) -> Targets:
    """Walk with all shifts; each stops on its own. What is found is that of the shifts, but `probability`."""
    with laid_out(objective.lm, objective.layer + 1):
        return _minimize(objective, base, settings, alignment)


def _minimize(objective: "Objective", base: Tensor, settings: TargetSettings, alignment: Alignment | None) -> Targets:
    n, of = len(base), objective.joint.shift.to(base.device)
    bound = settings.clamp * base.norm(dim=1, keepdim=True)  # [n, 1]
    walk = PolyakWalk(base, settings.stop_loss) if settings.optimizer == "polyak" else AdamWalk(base, settings)
    found = torch.zeros_like(base)
    loss, steps, likelihood = base.new_zeros(n), base.new_zeros(n), base.new_zeros(len(of))
    active = torch.ones(n, dtype=torch.bool, device=base.device)
    # A shift that serves several phrasings has more to fit, and is given twice the steps.
    budget = settings.steps * (1 + (objective.joint.phrasings_of_each_shift > 1).long().to(base.device))
    for step in range(int(budget.max())):
        last: Tensor = torch.eq(budget, step + 1)
        with torch.set_grad_enabled(not bool(last[active].all())):  # nothing is done with the last gradient
            total, nll, gradient = objective(walk.shift)
        done = active & ((total < settings.stop_loss) | last)
        found[done], loss[done], steps[done] = walk.shift.detach()[done], total[done], step
        likelihood[done[of]] = nll[done[of]]
        active &= ~done
        if not active.any():
            break
        if done.any():
            objective.keep(active)
        if alignment is not None:
            gradient = gradient + alignment.gradient(walk.shift)
        walk.step(gradient, total, bound)
    clamped = found.norm(dim=1) >= 0.999 * bound.squeeze(1)
    return Targets(base + found, torch.exp(-likelihood), loss, steps, clamped, base.new_empty(n, 0, base.shape[1]))


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
    """

    def __init__(self, base: Tensor, stop_loss: float) -> None:
        super().__init__(base)
        self._aim, self._longest = _AIM * stop_loss, _LONGEST * base.norm(dim=1)
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


class Objective:
    """Loss and gradient of every shift that is still active."""

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
        self.lm, self.layer, self.joint = lm, layer, joint
        self.base_norm, self.width, self.settings = base.norm(dim=1), base.shape[1], settings
        self.groups = groups + [rows._replace(reference=self._reference(rows)) for rows in kl_groups]
        self.passes = _passes(lm, self.groups, settings.tokens_at_once)

    @torch.no_grad()
    def _reference(self, rows: Rows) -> Tensor:
        """Log-probabilities at the predicted places without the shift, `[t, vocabulary]`."""
        only = one_pass(self.lm, [rows])
        states = self.states(only, only.hidden.new_zeros(int(rows.owner.max()) + 1, self.width))
        return torch.log_softmax(self.lm.logits(states), dim=-1)

    def __call__(self, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate all active shifts.

        Returns:
            Loss of the phrasing of each shift that is worst off `[G]`, the likelihood part of each request `[N]`, and
            the gradient of the sum of the requests' losses `[G, d]`. Entries of shifts that have left are meaningless
            (losses) or zero (gradient of the likelihood).
        """
        decay = self.settings.decay(shift, self.base_norm)
        recorded = decay.requires_grad
        gradient = torch.autograd.grad(decay.sum(), shift)[0] if recorded else torch.zeros_like(shift)
        nll, divergence = shift.new_zeros(len(self.joint.request)), shift.new_zeros(len(shift))
        for each in self.passes:
            states = self.states(each, shift)
            cut = len(each.labels)
            losses, pull = self._by_parts(states[:cut], partial(_negative_log_likelihood, each))
            nll.index_add_(0, each.predicted[:cut], losses.to(nll.device))
            losses, drag = self._by_parts(states[cut:], partial(_divergence, each))
            divergence.index_add_(0, each.predicted[cut:], losses.to(nll.device) * self.settings.kl_weight)
            if recorded:
                pull = torch.cat([pull, drag * self.settings.kl_weight])
                gradient += torch.autograd.grad(states, shift, pull)[0]
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

    def _by_parts(self, states: Tensor, loss: Callable[[Tensor, slice], Tensor]) -> tuple[Tensor, Tensor]:
        """Loss of each predicted place `[t]`, and the gradient of their sum at the states `[t, d]`.

        Logits are large: few rows of them exist at a time, and their part of the gradient is taken at once.
        """
        losses = states.new_zeros(len(states), dtype=torch.float32)
        pull = torch.zeros_like(states)
        size = max(1, LOGITS_AT_ONCE // self.lm.config.vocab_size)
        for start in range(0, len(states), size):
            some = slice(start, start + size)
            leaf = states[some].detach().requires_grad_(states.requires_grad)
            each = loss(torch.log_softmax(self.lm.logits(leaf), dim=-1), some)
            losses[some] = each.detach().to(losses.device)
            if each.requires_grad:
                pull[some] = torch.autograd.grad(each.sum(), leaf)[0]
        return losses, pull

    def keep(self, active: Tensor) -> None:
        """Drop the rows of requests that have left the batch."""
        self.groups = [_select(self.lm, rows, active[rows.owner]) for rows in self.groups if active[rows.owner].any()]
        self.passes = _passes(self.lm, self.groups, self.settings.tokens_at_once)


def _negative_log_likelihood(each: Pass, logp: Tensor, some: slice) -> Tensor:
    labels, weights = each.labels[some].to(logp.device), each.weights[some].to(logp.device)
    return -logp.gather(1, labels[:, None]).squeeze(1) * weights


def _divergence(each: Pass, logp: Tensor, some: slice) -> Tensor:
    """KL(shifted || unshifted)."""
    return (logp.exp() * (logp - each.reference[some])).sum(1)


def _passes(lm: LanguageModel, groups: list[Rows], max_tokens: int) -> list[Pass]:
    """Fill forward passes with groups; a model that does not take packed rows has a pass for each group."""
    filled: list[list[Rows]] = []
    room = 0
    for rows in groups:
        size = rows.ids.numel()
        if not filled or size > room or not packs(lm):
            filled.append([])
            room = max_tokens
        filled[-1].append(rows)
        room -= size
    return [one_pass(lm, each) for each in filled]


def one_pass(lm: LanguageModel, groups: list[Rows]) -> Pass:
    """One forward pass through some groups, those compared with a reference last."""
    starts = [0, *accumulate(rows.ids.numel() for rows in groups)]
    subjects, where = [], []
    for start, rows in zip(starts, groups, strict=False):
        columns = rows.ids.shape[1]
        subjects.append(start + columns * torch.arange(len(rows.ids), device=rows.ids.device) + rows.subject)
        where.append(start + columns * rows.where[0] + rows.where[1])
    hidden, calls = groups[0].hidden, groups[0].calls
    if packs(lm):
        hidden = torch.cat([rows.hidden.flatten(0, 1) for rows in groups])[None]
        calls = pack_calls(lm, [Suffixes(rows.ids, rows.positions, rows.prefix, rows.calls) for rows in groups])
    asked = [rows for rows in groups if rows.reference is None]
    references = [rows.reference for rows in groups if rows.reference is not None]
    return Pass(
        calls,
        hidden,
        torch.cat(subjects),
        torch.cat([rows.owner for rows in groups]),
        torch.cat(where),
        torch.cat([rows.asked[rows.where[0]] for rows in groups]),
        torch.cat([rows.labels for rows in asked]) if asked else groups[0].labels[:0],
        torch.cat([rows.weights for rows in asked]) if asked else groups[0].weights[:0],
        torch.cat(references) if references else hidden.new_zeros(0, lm.config.vocab_size),
    )


def rewrite_rows(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    layer: int,
    max_tokens: int,
    joint: Joint,
) -> list[Rows]:
    """Rows "context + question + target", every target token weighted 1 / (contexts * tokens of the target).

    The phrasings of one request share the weight that it has.
    """
    prompts = [in_context(request, context, request.target_new) for request in requests for context in contexts]
    tokens = tokenize(lm.tokenizer, prompts, lm.config.max_position_embeddings)
    # The last target token is predicted, never read.
    lengths = [len(entry.ids) - 1 - _cut(lm, entry) for entry in tokens]
    found = [
        _build(lm, [tokens[i] for i in rows], [divmod(i, len(contexts)) for i in rows], len(contexts), layer)
        for rows in micro_batches(lengths, max_tokens)
    ]
    return [_assigned(rows, joint) for rows in found]


def _assigned(rows: Rows, joint: Joint) -> Rows:
    """Rows of phrasings with the shifts that these belong to."""
    asked, device = rows.asked.cpu(), rows.asked.device
    weights = torch.tensor(joint.weights, device=device)[rows.asked[rows.where[0]]]
    return rows._replace(owner=joint.shift_of_phrasing[asked].to(device), weights=rows.weights * weights)


def kl_rows(lm: LanguageModel, requests: Sequence[EditRequest], layer: int, max_tokens: int) -> list[Rows]:
    """Rows "{subject} is a", cut at the subject: the divergence is taken there, as in MEMIT's code."""
    tokens = tokenize(lm.tokenizer, [kl_prompt(request) for request in requests], lm.config.max_position_embeddings)
    cut = [Tokens(entry.ids[: entry.subject_last + 2], entry.subject_last + 1, entry.subject_last) for entry in tokens]
    return [
        _build(lm, [cut[i] for i in rows], [(i, 0) for i in rows], 1, layer)
        for rows in micro_batches([len(entry.ids) - 1 - _cut(lm, entry) for entry in cut], max_tokens // 16)
    ]


def _cut(lm: LanguageModel, tokens: Tokens) -> int:
    """How many tokens run once, as a prefix: those before the subject's last, if they leave keys and values."""
    return 0 if lm.recurrent else tokens.subject_last


@torch.no_grad()
def _build(lm: LanguageModel, tokens: list[Tokens], origin: list[tuple[int, int]], n_contexts: int, layer: int) -> Rows:
    """Run the prefix through all blocks and the suffix up to the target block.

    `origin` holds the phrasing and the context of each row.
    """
    device = lm.device
    cuts = [_cut(lm, entry) for entry in tokens]
    prefix_ids, prefix_mask = pad([entry.ids[:cut] for entry, cut in zip(tokens, cuts, strict=True)], lm.pad_id, device)
    ids, mask = pad([entry.ids[cut:-1] for entry, cut in zip(tokens, cuts, strict=True)], lm.pad_id, device)
    start = torch.tensor([[cut] for cut in cuts], device=device)
    positions = start + torch.arange(ids.shape[1], device=device)
    prefix = run_prefix(lm, prefix_ids, prefix_mask)
    mask = torch.cat([prefix_mask, mask], dim=1)
    calls = prefix.calls(lm, ids, mask, positions)
    hidden = lm.run(calls.hidden, calls, 0, layer + 1)
    where = [
        (row, entry.target_start - 1 - cut + k)
        for row, (entry, cut) in enumerate(zip(tokens, cuts, strict=True))
        for k in range(len(entry.target))
    ]
    labels = [label for entry in tokens for label in entry.target]
    device = hidden.device
    weights = [1 / (n_contexts * len(entry.target)) for entry in tokens for _ in entry.target]
    asked = torch.tensor([phrasing for phrasing, _ in origin], device=device)
    return Rows(
        asked,
        asked,
        torch.tensor([context == 0 for _, context in origin], device=device),
        ids.to(device),
        mask.to(device),
        positions.to(device),
        torch.tensor([entry.subject_last - cut for entry, cut in zip(tokens, cuts, strict=True)], device=device),
        prefix,
        hidden,
        calls,
        torch.tensor(where, device=device).T,
        torch.tensor(labels, device=device),
        torch.tensor(weights, device=device),
    )


def _select(lm: LanguageModel, rows: Rows, keep: Tensor) -> Rows:
    """Keep some rows, and the predicted positions that lie in them."""
    index = keep.nonzero().squeeze(1)
    prefix = rows.prefix.select(index)
    ids, mask, positions = rows.ids[index], rows.mask[index], rows.positions[index]
    renumbered = torch.cumsum(keep, 0) - 1
    kept = keep[rows.where[0]]
    return Rows(
        rows.asked[index],
        rows.owner[index],
        rows.plain[index],
        ids,
        mask,
        positions,
        rows.subject[index],
        prefix,
        rows.hidden[index],
        prefix.calls(lm, ids, mask, positions),
        torch.stack([renumbered[rows.where[0][kept]], rows.where[1][kept]]),
        rows.labels[kept],
        rows.weights[kept],
        None if rows.reference is None else rows.reference[kept.to(rows.reference.device)],
    )


def _subject_states(groups: list[Rows], n: int) -> Tensor:
    """Output of the target block at the subject of each plain prompt, float32 `[n, d]`."""
    states = groups[0].hidden.new_zeros(n, groups[0].hidden.shape[-1], dtype=torch.float32)
    for rows in groups:
        states[rows.asked[rows.plain]] = rows.hidden[rows.plain, rows.subject[rows.plain]].float()
    return states
