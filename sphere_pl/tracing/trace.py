"""Causal tracing on a language model (Meng et al. 2022, arXiv 2202.05262, Sec. 2).

The subject's embeddings are corrupted with noise until the model forgets the answer. Then one state of the clean run
at a time is put back, and the answer's probability shows whether it matters: the output of a block at one token, or
the outputs of the MLPs or attentions of a window of layers at one token.

Every combination of kind, layer, token and noise sample is one row. Only what a restoration changes is computed:

- Columns before the restored token are those of the corrupted run, whose keys and values stay in a `FrozenPrefix`.
- A row enters at the first block that is restored, with the corrupted run's state there. Rows that enter at
  neighbouring blocks share a batch, which grows on its way up.
- The language-model head is applied at the columns that predict the answer only.

The probabilities are those of the literal procedure, one restoration at a time, up to rounding.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from sphere_pl.errors import UserError
from sphere_pl.model.block_calls import stream_of
from sphere_pl.model.frozen_prefix import FrozenPrefix
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.tokens import Prompt, Tokens, tokenize
from sphere_pl.tracing.functional import KINDS, indirect_effects, subject_noise, token_roles, windows


@dataclass(frozen=True)
class TraceSettings:
    """How facts are traced.

    Args:
        facts: How many of the facts that the model answers right are traced, the first ones.
        samples: Noise samples for each fact (10 in the authors' code; more facts tell more than more samples).
        noise: Standard deviation of the noise, in standard deviations of the subjects' embeddings (3 in the paper).
        window: How many layers' MLP or attention outputs are restored together; the paper's share, 10 of 48 layers, if
            None.
        max_tokens: Tokens in one forward pass.
        seed: Seed of the noise.
    """

    facts: int = 50
    samples: int = 3
    noise: float = 3.0
    window: int | None = None
    max_tokens: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("facts", "samples", "max_tokens", "noise"):
            if getattr(self, name) <= 0:
                raise UserError(f"`--trace.{name}={getattr(self, name)}` must be above 0.")
        if self.window is not None and self.window < 1:
            raise UserError(f"`--trace.window={self.window}` must be at least 1, or left out.")

    def width(self, layers: int) -> int:
        """The window's width in a model of so many layers.

        Example:
            >>> TraceSettings().width(48), TraceSettings().width(30), TraceSettings(window=4).width(30)
            (10, 6, 4)
        """
        return self.window or max(1, round(layers * 10 / 48))


class FactTrace(NamedTuple):
    """What tracing one fact found.

    Attributes:
        question: The prompt.
        answer: The answer whose probability is followed.
        tokens: Texts of the `T` tokens from the subject's first on.
        roles: Role of each, an index into `ROLES`.
        clean: Probability of the answer in the clean run.
        corrupted: The same in the corrupted run, as the mean over samples.
        effects: Indirect effect of restoring each state, `[K, T, L]`.
    """

    question: str
    answer: str
    tokens: list[str]
    roles: list[int]
    clean: float
    corrupted: float
    effects: Tensor


def check_traceable(lm: LanguageModel) -> None:
    """Refuse models that cannot be run again from the middle of a prompt.

    Raises:
        UserError: If some blocks keep a state in the place of keys and values.
    """
    if lm.recurrent:
        raise UserError(
            f"Causal tracing restores states in the middle of a prompt and continues from there, which a "
            f"{lm.model.config.model_type} model cannot do: some of its blocks keep a state in the place of keys and "
            "values. Choose layers by a few short runs instead: python -m sphere_pl fit --model.layers=[...]."
        )


def trace_fact(
    lm: LanguageModel, prompt: Prompt, settings: TraceSettings, deviation: float, generator: torch.Generator
) -> FactTrace:
    """Trace one fact through all layers.

    Args:
        lm: The language model.
        prompt: The question, its subject and its answer.
        settings: Samples, window and so on.
        deviation: Standard deviation of embeddings; see `embedding_deviation`.
        generator: Where the noise comes from; a CPU generator gives the same noise on every device.
    """
    (tokens,) = tokenize(lm.tokenizer, [prompt], lm.context)
    first, stop = tokens.subject_first, tokens.target_start
    subject = tokens.subject_last + 1 - first
    width = lm.config.hidden_size
    noise = subject_noise(settings.samples, subject, width, settings.noise * deviation, generator)
    runs = _run(lm, tokens, noise.to(lm.device))
    restored = _restore(lm, tokens, runs, settings)  # [K, T, L, S]
    return FactTrace(
        prompt.text,
        prompt.target,
        [lm.tokenizer.decode([token]) for token in tokens.ids[first:stop]],
        token_roles(subject, stop - tokens.subject_last - 1),
        float(runs.probabilities[0]),
        float(runs.probabilities[1:].mean()),
        indirect_effects(restored, runs.probabilities[1:].cpu()),
    )


class _Runs(NamedTuple):
    """One clean run and `S` corrupted ones over the same tokens, `columns` of them.

    Attributes:
        clean: Output of each kind of module of the clean run, `[K, columns, d]` for each of the L layers.
        entering: What enters each block in the corrupted runs, `[S, columns, d]` for each layer.
        cache: Keys and values of the corrupted runs, `[S, heads, columns, head_dim]` for each layer.
        probabilities: Probability of the answer in all runs, the clean one first, `[1 + S]`.
    """

    clean: list[Tensor]
    entering: list[Tensor]
    cache: FrozenPrefix
    probabilities: Tensor


def _run(lm: LanguageModel, tokens: Tokens, noise: Tensor) -> _Runs:
    """Run the model without and with `noise` of shape `[S, subject tokens, d]`, all in one batch."""
    ids = torch.tensor([tokens.ids[:-1]], device=lm.device).expand(1 + len(noise), -1)
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    cache: Any = DynamicCache()
    with _corrupting(lm.model.get_input_embeddings(), noise, tokens.subject_first):
        calls = lm.block_calls(ids, torch.ones_like(ids), positions, cache)
    hidden, clean, entering = calls.hidden, [], []
    for layer in range(lm.n_layers):
        entering.append(hidden[1:])
        with _recording(_modules(lm, layer), ids.shape[1]) as outputs:
            hidden = lm.run(hidden, calls, layer, layer + 1)
        clean.append(torch.stack([output[0] for output in outputs]))
    kept = FrozenPrefix([entry.keys[1:] for entry in cache.layers], [entry.values[1:] for entry in cache.layers])
    return _Runs(clean, entering, kept, _probability(lm, hidden, tokens))


def _restore(lm: LanguageModel, tokens: Tokens, runs: _Runs, settings: TraceSettings) -> Tensor:
    """Probability of the answer for every restoration, `[K, T, L, S]`, on the CPU."""
    layers, samples = lm.n_layers, len(runs.entering[0])
    kinds, layer, sample = torch.cartesian_prod(
        torch.arange(len(KINDS)), torch.arange(layers), torch.arange(samples)
    ).unbind(1)
    starts, stops = windows(layers, settings.width(layers))
    alone = kinds == KINDS.index("state")  # a state holds all that came before: no window is needed
    start, stop = torch.where(alone, layer, starts[layer]), torch.where(alone, layer + 1, stops[layer])
    order = start.argsort(stable=True)
    rows = _Rows(kinds[order], start[order], stop[order], sample[order])
    found = torch.empty(tokens.target_start - tokens.subject_first, len(order))
    for place, column in enumerate(range(tokens.subject_first, tokens.target_start)):
        size = max(1, settings.max_tokens // (len(tokens.ids) - 1 - column))
        for part, chosen in zip(rows.split(size), order.split(size), strict=True):
            found[place, chosen] = _restored(lm, tokens, runs, part, column).float().cpu()
    restored: Tensor = found.unflatten(1, (len(KINDS), layers, samples))  # [T, K, L, S]
    return restored.transpose(0, 1)


class _Rows(NamedTuple):
    """Restorations at one token, in the order in which they enter the model, each entry of shape `[rows]`.

    Attributes:
        kind: Which module's output is restored, an index into `KINDS`.
        start: The first block whose module is restored.
        stop: The block after the last one.
        sample: Number of the corrupted run.
    """

    kind: Tensor
    start: Tensor
    stop: Tensor
    sample: Tensor

    def split(self, size: int) -> "list[_Rows]":
        """Cut into pieces of at most `size` rows."""
        return [_Rows(*parts) for parts in zip(*(entry.split(size) for entry in self), strict=True)]


def _restored(lm: LanguageModel, tokens: Tokens, runs: _Runs, rows: _Rows, column: int) -> Tensor:
    """Probability of the answer with states of the clean run put back at one column, `[rows]`."""
    entered = [int((rows.start <= layer).sum()) for layer in range(lm.n_layers)]
    sample = rows.sample
    prefix = FrozenPrefix(
        [_chosen(k[:, :, :column], sample[:n]) for k, n in zip(runs.cache.keys, entered, strict=True)],
        [_chosen(v[:, :, :column], sample[:n]) for v, n in zip(runs.cache.values, entered, strict=True)],
    )
    # All rows hold the same tokens, so what the model passes to its blocks for one row serves any number.
    ids = torch.tensor([tokens.ids[:-1]], device=lm.device)
    positions = torch.arange(column, ids.shape[1], device=ids.device)[None]
    empty = FrozenPrefix([], [])
    calls = (prefix if column else empty).calls(lm, ids[:, column:], torch.ones_like(ids), positions)
    hidden = runs.entering[0].new_empty(0, ids.shape[1] - column, runs.entering[0].shape[-1])
    for layer in range(int(rows.start[0]), lm.n_layers):
        new = sample[len(hidden) : entered[layer]]
        joining = _chosen(runs.entering[layer][:, column:], new)
        hidden = torch.cat([hidden.to(joining.device), joining])
        active = (rows.start <= layer) & (layer < rows.stop)
        with ExitStack() as stack:
            for kind, module in enumerate(_modules(lm, layer)):
                chosen = (active & (rows.kind == kind)).nonzero().squeeze(1)
                stack.enter_context(_replacing(module, chosen, runs.clean[layer][kind, column], hidden.shape[1]))
            hidden = lm.run(hidden, calls, layer, layer + 1)
    return _probability(lm, hidden, tokens)


def _chosen(states: Tensor, rows: Tensor) -> Tensor:
    """Some rows, in any order and number."""
    return states.index_select(0, rows.to(states.device))


def _probability(lm: LanguageModel, hidden: Tensor, tokens: Tokens) -> Tensor:
    """Probability of the whole answer, `[rows]`, from the last block's output at the last columns."""
    count = len(tokens.target)
    logits = lm.logits(hidden[:, -count:].flatten(0, 1)).unflatten(0, (len(hidden), -1))
    target = torch.tensor(tokens.target, device=logits.device)
    chosen = torch.log_softmax(logits, -1).gather(2, target[None, :, None].expand(len(hidden), -1, 1))
    probability: Tensor = chosen.sum((1, 2)).exp()
    return probability


def _modules(lm: LanguageModel, layer: int) -> list[nn.Module]:
    """The modules of a block whose outputs are restored, in the order of `KINDS`."""
    block, architecture = lm.block(layer), lm.architecture
    return [block, block.get_submodule(architecture.mlp_in(block)), block.get_submodule(architecture.attention)]


def _by_rows(output: Any, columns: int) -> Tensor:
    """What a module puts out, `[rows, columns, d]`, as a view; some blocks hand rows and columns on as one."""
    states = stream_of(output)
    return states if states.ndim > 2 else states.unflatten(0, (-1, columns))


@contextmanager
def _corrupting(embedding: nn.Module, noise: Tensor, first: int) -> Iterator[None]:
    """Add noise `[S, tokens, d]` to the embeddings from column `first` on, in all rows but the first."""

    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        corrupted = output.clone()
        corrupted[1:, first : first + noise.shape[1]] += noise.to(output.dtype)
        return corrupted

    handle = embedding.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _recording(modules: Sequence[nn.Module], columns: int) -> Iterator[list[Tensor]]:
    """Note the modules' outputs, in the order of the modules."""
    outputs = [torch.empty(0)] * len(modules)

    def record(place: int) -> Any:
        # Copied: Falcon's blocks add attention to the MLP's output in place.
        return lambda _, __, output: outputs.__setitem__(place, _by_rows(output, columns).clone())

    handles = [module.register_forward_hook(record(place)) for place, module in enumerate(modules)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _replacing(module: nn.Module, rows: Tensor, value: Tensor, columns: int) -> Iterator[None]:
    """Put `value` `[d]` into the first column of some rows of a module's output."""

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        states = _by_rows(output, columns)
        states[rows.to(states.device), 0] = value  # in place: the output is the module's own, fresh tensor

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
