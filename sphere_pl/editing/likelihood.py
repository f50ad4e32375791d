"""The likelihood of a batch's targets as a function of one edited matrix.

What methods without target values work on. The model is frozen; gradients are asked for with `torch.autograd.grad`.

- The blocks below the edited one run once a batch: an edit cannot change the residual stream that enters its block.
- Each evaluation runs the edited block, with the float32 matrix in the place of its own, and the blocks above.
- The language-model head is applied at the positions that predict the target only.

Shapes: `n` requests, `r` rows of a group, `t` target tokens of a group, `d` hidden size.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pad_sequence

from sphere_pl.data.request import EditRequest
from sphere_pl.errors import UserError
from sphere_pl.model.attention import gradient_attention
from sphere_pl.model.batching import micro_batches, pad
from sphere_pl.model.block_calls import BlockCalls, stream_of
from sphere_pl.model.families import EditSite
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.tokens import Tokens, in_context, tokenize


class _Group(NamedTuple):
    """Some requests, ready to be run through the blocks.

    Attributes:
        hidden: The residual stream that enters the current block, `[r, columns, d]`.
        calls: How the blocks are called.
        row: Row of each token to predict, `[t]`.
        column: Column that predicts it, `[t]`.
        labels: The token, `[t]`.
        weights: One over the number of tokens of its target, `[t]`.
    """

    hidden: Tensor
    calls: BlockCalls
    row: Tensor
    column: Tensor
    labels: Tensor
    weights: Tensor


class TargetLikelihood:
    """Negative log-likelihood of the targets after their plain questions.

    Args:
        lm: The language model as it is before the batch.
        requests: The `n` requests.
        sites: The matrices to edit, shallow to deep.
        max_tokens: Tokens in one forward pass.
        end_of_text: Whether the end-of-text token is part of each target.

    Raises:
        UserError: If `end_of_text` is asked of a tokenizer that has no such token.
    """

    def __init__(
        self,
        lm: LanguageModel,
        requests: Sequence[EditRequest],
        sites: Sequence[EditSite],
        max_tokens: int = 4096,
        end_of_text: bool = False,
    ) -> None:
        self.lm, self.sites, self.max_tokens = lm, sites, max_tokens
        self._tokens = _targets(lm, requests, end_of_text)
        self._lengths = [len(entry.ids) - 1 for entry in self._tokens]  # the last token is predicted, never read
        self._current, self._layer = 0, sites[0].layer
        self._start = self._entry = self._run(None, 0, self._layer)
        self._features: list[tuple[Tensor, Tensor]] | None = None
        self.losses = self._entry[0].new_zeros(len(requests), dtype=torch.float32)
        self.evaluations = 0

    def __len__(self) -> int:
        return len(self._tokens)

    def advance(self, index: int) -> None:
        """Turn to the matrix number `index`; what enters its block follows from the matrices as they are then."""
        self._current = index

    def scalars(self) -> dict[str, Tensor | float]:
        """What the last evaluation of each request reached, mean over the batch."""
        return {
            "probability": torch.exp(-self.losses).mean(),
            "loss": self.losses.mean(),
            "steps": float(self.evaluations),
        }

    def loss_and_gradient(self, weight: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """See `sphere_pl.methods.base.Objective`."""
        self._move()
        places = chosen.tolist()
        leaf = weight.detach().requires_grad_()
        gradient = torch.zeros_like(weight)
        for rows in micro_batches([self._lengths[place] for place in places], self.max_tokens):
            requests = [places[row] for row in rows]
            group = self._group(requests, self._entry)
            with torch.enable_grad(), gradient_attention(self.lm):
                losses = self._losses(self._edited_block(leaf, group), group, self._layer + 1, len(rows))
                gradient += torch.autograd.grad(losses.sum() / len(places), leaf)[0]
            self.losses[requests] = losses.detach().to(self.losses.device)
        self.evaluations += 1
        return self.losses[places], gradient

    def features(self) -> tuple[Tensor, Tensor]:
        """See `sphere_pl.methods.base.Objective`. All matrices are looked at on the first call."""
        if self._features is None:
            self._features = self._measure_features()
        return self._features[self._current]

    def _move(self) -> None:
        """Bring the residual stream to the entry of the current matrix's block."""
        layer = self.sites[self._current].layer
        if layer < self._layer:
            self._entry, self._layer = self._start, self.sites[0].layer
        if layer > self._layer:
            self._entry, self._layer = self._run(self._entry, self._layer, layer), layer

    def _run(self, entry: list[Tensor] | None, start: int, stop: int) -> list[Tensor]:
        """Each request's residual stream `[length, d]` at the entry of block `stop`."""
        found: dict[int, Tensor] = {}
        for rows in micro_batches(self._lengths, self.max_tokens):
            group = self._group(rows, entry)
            with torch.no_grad():
                hidden = self.lm.run(group.hidden, group.calls, start, stop)
            found |= {row: hidden[place, : self._lengths[row]] for place, row in enumerate(rows)}
        return [found[row] for row in range(len(self))]

    def _group(self, rows: Sequence[int], entry: list[Tensor] | None) -> _Group:
        """Pad some requests; they enter block 0 if they have no entry yet."""
        device = self.lm.device
        tokens = [self._tokens[row] for row in rows]
        ids, mask = pad([token.ids[:-1] for token in tokens], self.lm.pad_id, device)
        calls = self.lm.block_calls(ids, mask, torch.arange(ids.shape[1], device=device).expand_as(ids))
        counts = torch.tensor([len(token.target) for token in tokens], device=device)
        columns = [token.target_start - 1 + k for token in tokens for k in range(len(token.target))]
        return _Group(
            calls.hidden if entry is None else pad_sequence([entry[row] for row in rows], batch_first=True),
            calls,
            torch.arange(len(rows), device=device).repeat_interleave(counts),
            torch.tensor(columns, device=device),
            torch.tensor([label for token in tokens for label in token.target], device=device),
            (1 / counts).repeat_interleave(counts),
        )

    def _edited_block(self, weight: Tensor, group: _Group) -> Tensor:
        """Output of the edited block with `weight`, in the model's dtype, in the place of its own matrix."""
        site = self.sites[self._current]
        stored = (weight.T if site.fan_in_fan_out else weight).to(site.stored.dtype)
        output = functional_call(
            self.lm.block(self._layer),
            {f"{site.path}.weight": stored},
            (group.hidden.to(stored.device), *group.calls.args[self._layer]),
            group.calls.kwargs[self._layer],
        )
        return stream_of(output)

    def _losses(self, hidden: Tensor, group: _Group, layer: int, n: int) -> Tensor:
        """Loss of each request of a group, `[n]`, from the residual stream that enters block `layer`."""
        hidden = self.lm.run(hidden, group.calls, layer, self.lm.n_layers)
        logits = self.lm.logits(hidden[group.row.to(hidden.device), group.column.to(hidden.device)])
        labels = group.labels.to(logits.device)[:, None]
        chosen = torch.log_softmax(logits, dim=-1).gather(1, labels).squeeze(1).to(group.row.device)
        return torch.zeros(n, device=chosen.device).index_add(0, group.row, -chosen * group.weights)

    def _measure_features(self) -> list[tuple[Tensor, Tensor]]:
        """Inputs of every matrix and gradients at its output, at all tokens of all requests."""
        measured: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.sites]
        for rows in micro_batches(self._lengths, self.max_tokens):
            group = self._group(rows, self._start)
            lengths = torch.tensor([self._lengths[row] for row in rows], device=group.hidden.device)
            real = torch.arange(group.hidden.shape[1], device=lengths.device) < lengths[:, None]  # [r, columns]
            with ExitStack() as stack, torch.enable_grad(), gradient_attention(self.lm):
                probes = [stack.enter_context(_probing(site.module)) for site in self.sites]
                losses = self._losses(group.hidden, group, self.sites[0].layer, len(rows))
                gradients = torch.autograd.grad(losses.sum(), [probe["output"] for probe in probes])
            self.losses[rows] = losses.detach().to(self.losses.device)
            for place, (probe, gradient) in enumerate(zip(probes, gradients, strict=True)):
                kept = real.flatten().to(gradient.device)  # some blocks hand rows and columns on as one
                inputs, pulls = (each.reshape(len(kept), -1) for each in (probe["input"].detach(), gradient))
                measured[place].append((inputs[kept].float(), pulls[kept].float()))
        self.evaluations += 1
        return [
            (torch.cat([keys for keys, _ in each]), torch.cat([gradients for _, gradients in each]))
            for each in measured
        ]


@contextmanager
def _probing(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Note what a module is called with, and add to its output a zero whose gradient is the output's."""
    seen: dict[str, Tensor] = {}

    def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen["input"], seen["output"] = args[0], torch.zeros_like(output).requires_grad_()
        return output + seen["output"]

    handle = module.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def _targets(lm: LanguageModel, requests: Sequence[EditRequest], end_of_text: bool) -> list[Tokens]:
    """Question and target of each request, the end-of-text token after it if asked for."""
    prompts = [in_context(request, "", request.target_new) for request in requests]
    tokens = tokenize(lm.tokenizer, prompts, lm.context)
    if not end_of_text:
        return tokens
    end = lm.tokenizer.eos_token_id
    if end is None:
        raise UserError("`end_of_text=True`, but the tokenizer has no end-of-text token. Set it to false.")
    return [entry._replace(ids=[*entry.ids, int(end)]) for entry in tokens]
