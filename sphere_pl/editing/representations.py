"""Keys at the input of an edited matrix, values at the output of a block.

Shapes: `n` requests, `C` contexts, `d` hidden size, `d_in` key size, rows = n * C sequences.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sphere_pl.data.request import EditRequest
from sphere_pl.model.batching import micro_batches, pad
from sphere_pl.model.block_calls import BlockCalls
from sphere_pl.model.families import EditSite
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.tokens import Tokens, in_context, tokenize


@contextmanager
def capture_input(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what `module` is called with while the block runs."""
    inputs: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    try:
        yield inputs
    finally:
        handle.remove()


@contextmanager
def capture_output(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what `module` returns while the block runs, copied: Falcon's blocks add attention to it in place."""
    outputs: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, __, output: outputs.append(output.clone()))
    try:
        yield outputs
    finally:
        handle.remove()


class _Reached(Exception):  # noqa: N818 (it is no error)
    """The module whose input is wanted has been called."""


def input_of(module: nn.Module, run: Callable[[], object]) -> Tensor:
    """What `module` is called with in `run`, which goes no further than that.

    Raises:
        RuntimeError: If `run` never calls it.
    """
    found: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0])
        raise _Reached

    handle = module.register_forward_pre_hook(stop)
    try:
        run()
    except _Reached:
        return found[0]
    finally:
        handle.remove()
    raise RuntimeError(f"{type(module).__name__} was not called by the block it belongs to.")


def context_weights(n_contexts: int, plain_share: float | None = 0.5) -> Tensor:
    """Weight of each context in a key: half for the plain prompt, half shared by the others (MEMIT, Eq. 19).

    Args:
        n_contexts: How many contexts, the plain one included.
        plain_share: Weight of the plain prompt; None weighs all alike (ROME, Eq. 3).

    Example:
        >>> context_weights(6)
        tensor([0.5000, 0.1000, 0.1000, 0.1000, 0.1000, 0.1000])
    """
    if n_contexts == 1:
        return torch.ones(1)
    if plain_share is None:
        return torch.full([n_contexts], 1 / n_contexts)
    return torch.tensor([plain_share] + [(1 - plain_share) / (n_contexts - 1)] * (n_contexts - 1))


class _Chunk(NamedTuple):
    """Some rows of a batch on their way through the blocks.

    Attributes:
        rows: Which rows of the batch these are, shape `[r]`.
        last: Column of the subject's last token in each, shape `[r]`.
        hidden: The residual stream that enters the current block, shape `[r, columns, d]`.
        calls: How the blocks are called for these rows.
    """

    rows: Tensor
    last: Tensor
    hidden: Tensor
    calls: BlockCalls

    def at_subject(self, states: Tensor) -> Tensor:
        """The subject's last column of `states`, `[r, columns, d]` or with both in one, shape `[r, d]`."""
        states = states.reshape(*self.hidden.shape[:2], -1)
        return states[torch.arange(len(self.last), device=states.device), self.last.to(states.device)]


class SubjectStream:
    """The residual stream of a batch's prompts, each cut at its subject's last token.

    Causality makes the cut exact: later tokens cannot change a key or a value at the subject. The blocks below the
    first edited layer run once a batch; `advance` then moves through the edited blocks with the weights they have at
    that moment. One stream serves keys, which are averaged over contexts, and values, which are those of the plain
    prompts: these stand in chunks of their own.

    Args:
        lm: The language model.
        requests: The batch.
        contexts: Context templates; the first must be the empty one.
        first_layer: The first edited block.
        max_tokens: Tokens in one forward pass.
        plain_share: Weight of the plain prompt in a key; see `context_weights`.
    """

    def __init__(
        self,
        lm: LanguageModel,
        requests: Sequence[EditRequest],
        contexts: Sequence[str],
        first_layer: int,
        max_tokens: int = 4096,
        plain_share: float | None = 0.5,
    ) -> None:
        self.lm = lm
        self.n_contexts, self.plain_share = len(contexts), plain_share
        # Context after context, so that the plain prompts come first.
        prompts = [in_context(request, context) for context in contexts for request in requests]
        tokens = tokenize(lm.tokenizer, prompts, lm.context)
        lengths, n = [entry.subject_last + 1 for entry in tokens], len(requests)
        plain = micro_batches(lengths[:n], max_tokens)
        others = [[row + n for row in rows] for rows in micro_batches(lengths[n:], max_tokens)]
        self._n_plain = len(plain)
        self._entry = [self._enter(tokens, rows, first_layer) for rows in plain + others]
        self._first_layer = first_layer
        self.rewind()

    @torch.no_grad()
    def _enter(self, tokens: list[Tokens], rows: list[int], first_layer: int) -> _Chunk:
        """Run the blocks below the first edited one."""
        ids, mask = pad(
            [tokens[row].ids[: tokens[row].subject_last + 1] for row in rows], self.lm.pad_id, self.lm.device
        )
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        calls = self.lm.block_calls(ids, mask, positions)
        hidden = self.lm.run(calls.hidden, calls, 0, first_layer)
        index = torch.tensor(rows, device=ids.device)
        return _Chunk(index, mask.sum(1) - 1, hidden, calls)

    def rewind(self) -> None:
        """Go back to the entry of the first edited block."""
        self._layer = self._first_layer
        self._chunks = self._entry

    @torch.no_grad()
    def advance(self, layer: int) -> None:
        """Move on to the entry of block `layer`."""
        self._chunks = [
            chunk._replace(hidden=self.lm.run(chunk.hidden, chunk.calls, self._layer, layer)) for chunk in self._chunks
        ]
        self._layer = layer

    @torch.no_grad()
    def keys(self, site: EditSite) -> Tensor:
        """Keys of the batch at `site`, averaged over contexts, float32 `[n, d_in]`.

        Moves on to the site's block if it lies ahead; of that block nothing runs after the key.
        """
        self.advance(site.layer)
        return self._average(
            [
                input_of(site.module, partial(self.lm.run, chunk.hidden, chunk.calls, site.layer, site.layer + 1))
                for chunk in self._chunks
            ]
        )

    @torch.no_grad()
    def all_keys(self, sites: Sequence[EditSite]) -> Iterator[Tensor]:
        """Keys at each site in turn, from the first edited block on and without running any block twice."""
        self.rewind()
        for site in sites[:-1]:
            self.advance(site.layer)
            inputs, moved = [], []
            for chunk in self._chunks:
                with capture_input(site.module) as seen:
                    hidden = self.lm.run(chunk.hidden, chunk.calls, site.layer, site.layer + 1)
                moved.append(chunk._replace(hidden=hidden))
                inputs.append(seen[0])
            self._chunks, self._layer = moved, site.layer + 1
            yield self._average(inputs)
        yield self.keys(sites[-1])

    @torch.no_grad()
    def values(self, layer: int) -> Tensor:
        """Output of block `layer` at the subject's last token of the plain prompts, float32 `[n, d]`."""
        chunks = self._chunks[: self._n_plain]
        outputs = [self.lm.run(chunk.hidden, chunk.calls, self._layer, layer + 1) for chunk in chunks]
        return _at_subjects(chunks, outputs)

    @torch.no_grad()
    def outputs(self, site: EditSite) -> tuple[Tensor, Tensor]:
        """Output of a site's block, and of its matrix, at the same places as `values`, float32 `[n, d]` each.

        Moves on to the site's block if it lies ahead.
        """
        self.advance(site.layer)
        chunks, blocks, matrices = self._chunks[: self._n_plain], [], []
        for chunk in chunks:
            with capture_output(site.module) as seen:
                blocks.append(self.lm.run(chunk.hidden, chunk.calls, site.layer, site.layer + 1))
            matrices.append(seen[0])
        return _at_subjects(chunks, blocks), _at_subjects(chunks, matrices)

    def _average(self, inputs: list[Tensor]) -> Tensor:
        """Weighted mean over contexts of what is found at the subjects, `[n, d_in]`."""
        found = _at_subjects(self._chunks, inputs).unflatten(0, (self.n_contexts, -1))  # [C, n, d_in]
        weights = context_weights(self.n_contexts, self.plain_share).to(found)
        return torch.einsum("c,cnd->nd", weights, found)


def _at_subjects(chunks: Sequence[_Chunk], states: Sequence[Tensor]) -> Tensor:
    """The subjects' columns of each chunk's states, float32, in the order of the rows."""
    values = torch.cat([chunk.at_subject(each).float() for chunk, each in zip(chunks, states, strict=True)])
    rows = torch.cat([chunk.rows for chunk in chunks]).to(values.device)
    return torch.empty_like(values).index_copy_(0, rows, values)
