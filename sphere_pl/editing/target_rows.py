"""The rows that targets are optimised on: what stands after the subject, with what stands before it run once.

Columns before the subject's last token cannot see the shift (causality). They run once, those that several rows begin
with once for all of them; their keys and values stay in a `FrozenPrefix`. Blocks up to the target layer run once for
the columns from the subject on.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sphere_pl.data.request import EditRequest
from sphere_pl.editing.asked import Joint
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.model.batching import micro_batches, pad
from sphere_pl.model.beginnings import Beginnings
from sphere_pl.model.block_calls import BlockCalls
from sphere_pl.model.frozen_prefix import FrozenPrefix
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.tokens import Tokens, in_context, kl_prompt, tokenize


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


def target_rows(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    layer: int,
    settings: TargetSettings,
    joint: Joint,
) -> tuple[list[Rows], list[Rows]]:
    """Rows "context + question + target", and those that watch the divergence; these are none where it has no weight.

    Every target token weighs 1 / (contexts * tokens of the target); the phrasings of one request share the weight that
    it has. The divergence is taken at the subject of "{subject} is a", as in MEMIT's code.
    """
    most, n = settings.tokens_at_once, len(contexts)
    prompts = [in_context(request, context, request.target_new) for request in requests for context in contexts]
    tokens = tokenize(lm.tokenizer, prompts, lm.context)
    watched = _watched(lm, joint.first_of_each_shift(requests)) if settings.kl_weight else []
    together = [*tokens, *watched]
    # The last token is predicted, never read.
    lengths = [len(entry.ids) - 1 - _cut(lm, entry) for entry in together]
    before = Beginnings(lm, [entry.ids[: _cut(lm, entry)] for entry in together], most, max(lengths))
    origin = [*(divmod(i, n) for i in range(len(tokens))), *((i, 0) for i in range(len(watched)))]
    build = partial(_build, lm, together, before=before, origin=origin, n_contexts=n, layer=layer)
    found = [build(rows) for rows in micro_batches(lengths[: len(tokens)], most)]
    beside = [build([len(tokens) + i for i in rows]) for rows in micro_batches(lengths[len(tokens) :], most // 16)]
    return [_assigned(rows, joint) for rows in found], beside


def _watched(lm: LanguageModel, requests: Sequence[EditRequest]) -> list[Tokens]:
    """What the divergence is taken at: a prompt of each subject, cut after it."""
    tokens = tokenize(lm.tokenizer, [kl_prompt(request) for request in requests], lm.context)
    return [Tokens(entry.ids[: entry.subject_last + 2], entry.subject_last + 1, entry.subject_last) for entry in tokens]


def _assigned(rows: Rows, joint: Joint) -> Rows:
    """Rows of phrasings with the shifts that these belong to."""
    asked, device = rows.asked.cpu(), rows.asked.device
    weights = torch.tensor(joint.weights, device=device)[rows.asked[rows.where[0]]]
    return rows._replace(owner=joint.shift_of_phrasing[asked].to(device), weights=rows.weights * weights)


def _cut(lm: LanguageModel, tokens: Tokens) -> int:
    """How many tokens run once, as a prefix: those before the subject's last, if they leave keys and values."""
    return 0 if lm.recurrent else tokens.subject_last


@torch.no_grad()
def _build(
    lm: LanguageModel,
    prompts: Sequence[Tokens],
    chosen: Sequence[int],
    *,
    before: Beginnings,
    origin: Sequence[tuple[int, int]],
    n_contexts: int,
    layer: int,
) -> Rows:
    """Run the suffixes of the chosen prompts up to the target block, after what they begin with.

    `origin` holds the phrasing, or the shift, and the context of each prompt.
    """
    tokens = [prompts[row] for row in chosen]
    cuts = [_cut(lm, entry) for entry in tokens]
    prefix, prefix_mask = before.of(chosen)
    ids, mask = pad([entry.ids[cut:-1] for entry, cut in zip(tokens, cuts, strict=True)], lm.pad_id, lm.device)
    start = torch.tensor([[cut] for cut in cuts], device=lm.device)
    positions = start + torch.arange(ids.shape[1], device=lm.device)
    mask = torch.cat([prefix_mask, mask], dim=1)
    calls = prefix.calls(lm, ids, mask, positions)
    hidden = lm.run(calls.hidden, calls, 0, layer + 1)
    device = hidden.device
    asked = torch.tensor([origin[row][0] for row in chosen], device=device)
    where, labels, weights = _predicted(tokens, cuts, n_contexts, device)
    return Rows(
        asked=asked,
        owner=asked,
        plain=torch.tensor([origin[row][1] == 0 for row in chosen], device=device),
        ids=ids.to(device),
        mask=mask.to(device),
        positions=positions.to(device),
        subject=torch.tensor([each.subject_last - cut for each, cut in zip(tokens, cuts, strict=True)], device=device),
        prefix=prefix,
        hidden=hidden,
        calls=calls,
        where=where,
        labels=labels,
        weights=weights,
    )


def _predicted(
    tokens: Sequence[Tokens], cuts: Sequence[int], n_contexts: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column `[2, t]` of what is predicted, the tokens to predict `[t]`, and the weight of each `[t]`."""
    where = [
        (row, entry.target_start - 1 - cut + k)
        for row, (entry, cut) in enumerate(zip(tokens, cuts, strict=True))
        for k in range(len(entry.target))
    ]
    labels = [label for entry in tokens for label in entry.target]
    weights = [1 / (n_contexts * len(entry.target)) for entry in tokens for _ in entry.target]
    return (
        torch.tensor(where, device=device).T,
        torch.tensor(labels, device=device),
        torch.tensor(weights, device=device),
    )


def select(lm: LanguageModel, rows: Rows, keep: Tensor) -> Rows:
    """Keep some rows, `keep` `[rows]` of bool, and the predicted positions that lie in them."""
    index = keep.nonzero().squeeze(1)
    prefix = rows.prefix.select(index)
    ids, mask, positions = rows.ids[index], rows.mask[index], rows.positions[index]
    renumbered = torch.cumsum(keep, 0) - 1
    kept = keep[rows.where[0]]
    return Rows(
        asked=rows.asked[index],
        owner=rows.owner[index],
        plain=rows.plain[index],
        ids=ids,
        mask=mask,
        positions=positions,
        subject=rows.subject[index],
        prefix=prefix,
        hidden=rows.hidden[index],
        calls=prefix.calls(lm, ids, mask, positions),
        where=torch.stack([renumbered[rows.where[0][kept]], rows.where[1][kept]]),
        labels=rows.labels[kept],
        weights=rows.weights[kept],
        reference=None if rows.reference is None else rows.reference[kept.to(rows.reference.device)],
    )


def subject_states(groups: list[Rows], n: int) -> Tensor:
    """Output of the target block at the subject of each plain prompt, float32 `[n, d]`."""
    states = groups[0].hidden.new_zeros(n, groups[0].hidden.shape[-1], dtype=torch.float32)
    for rows in groups:
        states[rows.asked[rows.plain]] = rows.hidden[rows.plain, rows.subject[rows.plain]].float()
    return states
