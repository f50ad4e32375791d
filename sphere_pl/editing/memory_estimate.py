"""How much memory a run will need, worked out on paper before it starts.

Everything follows from shapes: the model's, the edited matrices' and the batch's. What no formula knows (the
framework's own libraries, the allocator's slack) is left out, so the estimate is what a GPU will hold; a process on a
CPU has about 0.7 GB of libraries beside it.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from sphere_pl.data.request import EditRequest
from sphere_pl.methods.base import Method
from sphere_pl.model.batching import LOGITS_AT_ONCE, MOST_TOKENS, micro_batches
from sphere_pl.model.families import EditSite
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.tokens import in_context, tokenize
from sphere_pl.process.devices import accelerator

# Numbers kept for the backward pass for each token and block, in units of the hidden size and of the MLP's width:
# inputs of both norms in float32 and in the model's type, queries, keys, values, attention, residuals; gate, up,
# activation and product.
_PER_HIDDEN, _PER_WIDTH = 16, 5
_LEAST_TOKENS, _USABLE = 256, 0.9
_SCORES = 4  # float32 tensors of logits that live at once: themselves, their logarithms, both gradients


class Shapes(NamedTuple):
    """What memory depends on of a model and the matrices to edit.

    Attributes:
        parameters: Number of parameters.
        itemsize: Bytes of one.
        layers: Number of blocks.
        hidden: Hidden size.
        width: Input size of the edited matrices, d_in.
        output: Output size of the edited matrices, d_out.
        cached: Numbers that a key-value cache holds for each token and block.
        vocabulary: Number of tokens the head tells apart.
        edited: Numbers of the edited blocks.
    """

    parameters: int
    itemsize: int
    layers: int
    hidden: int
    width: int
    output: int
    cached: int
    vocabulary: int
    edited: tuple[int, ...]


class Batch(NamedTuple):
    """What the target optimisation of a batch depends on.

    Attributes:
        requests: Edits in a batch.
        contexts: Context templates, the empty one included.
        before: Tokens of a prompt before the subject's last one, the context's included.
        after: Tokens from the subject's last one to the target's end.
        predicted: Tokens of a target.
        in_pass: Tokens of the largest forward pass; see `largest_pass`.
    """

    requests: int
    contexts: int
    before: int
    after: int
    predicted: int
    in_pass: int


class Need(NamedTuple):
    """Memory in bytes, on the device that edits.

    Attributes:
        model: The language model.
        masters: Float32 copies of the edited matrices and the guard's copies of them, and one update.
        moments: Second moments, while they are summed.
        states: What the method keeps for all edited matrices: basis, memory of keys; nothing if held elsewhere.
        matrix: What one matrix takes beside that, while it is prepared or solved for.
        targets: The target optimisation of one batch.
    """

    model: int
    masters: int
    moments: int
    states: int
    matrix: int
    targets: int

    @property
    def peak(self) -> int:
        """The most that is held at once: sums are given back before states are made, targets before the solves."""
        return self.model + self.masters + max(self.moments, self.states + max(self.matrix, self.targets))

    def line(self) -> str:
        """One line for people."""
        parts = {
            "model": self.model,
            "edited matrices": self.masters,
            "second moments": self.moments,
            "method": self.states,
            "one matrix": self.matrix,
            "targets of a batch": self.targets,
        }
        listed = ", ".join(f"{name} {amount / 1e9:.2f}" for name, amount in parts.items() if amount)
        return f"Memory: about {self.peak / 1e9:.1f} GB beside Python and its libraries ({listed})."


def need(shapes: Shapes, batch: Batch, method: Method, held_elsewhere: bool = False) -> Need:
    """Estimate what a run holds.

    Args:
        shapes: Of the model and its edited matrices.
        batch: Of the largest batch.
        method: Says how much it keeps for a matrix; one without target values needs none of that optimisation.
        held_elsewhere: Whether moments and states are held on another device (`statistics_device`).
    """
    matrix, square, count = shapes.width * shapes.output, shapes.width**2, len(shapes.edited)
    state = method.state_bytes(shapes.output, shapes.width)
    moments = prepared = 0
    if method.needs_second_moment:
        # Sums in float64; the product of a batch's keys in float32, once more as the solver of eigenvalues has it.
        moments = (8 * (0 if held_elsewhere else count) + 12) * square
        prepared = method.preparation_bytes(shapes.width)
    return Need(
        shapes.parameters * shapes.itemsize,
        4 * matrix * (2 * count + 1),
        moments,
        0 if held_elsewhere else count * state,
        # A state at work and the next one on its way; a memory that takes keys in is there twice for a moment.
        max(prepared, 5 * state // 2 if held_elsewhere else 0),
        _targets(shapes, batch) if method.needs_targets else 0,
    )


def _targets(shapes: Shapes, batch: Batch) -> int:
    """The cached prefix of all rows, and one forward pass kept for its gradient."""
    rows = batch.requests * batch.contexts
    above = shapes.layers - 1 - shapes.edited[-1]
    cache = rows * batch.before * shapes.layers * shapes.cached * shapes.itemsize
    share = batch.in_pass / (rows * batch.after)
    numbers = _PER_HIDDEN * shapes.hidden + _PER_WIDTH * shapes.width
    # Each block keeps its own copy of the columns that its queries attend to.
    numbers += (batch.before + batch.after) * shapes.cached // batch.after
    kept = batch.in_pass * above * numbers * shapes.itemsize
    scores = _SCORES * 4 * min(int(share * rows * batch.predicted) * shapes.vocabulary, LOGITS_AT_ONCE)
    divergence = 2 * 4 * batch.requests * shapes.vocabulary
    return cache + kept + scores + divergence


def capacity(device: torch.device) -> int:
    """How many bytes this process can have on a device, what it has already included.

    On an accelerator that is what others leave free; in main memory all there is, so that one machine's runs are the
    same whatever else it does.
    """
    found = accelerator()
    if found is not None and device.type == found.type:
        try:
            return torch.accelerator.get_memory_info(device)[0] + torch.accelerator.memory_reserved(device)
        except RuntimeError:  # one that does not tell
            pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else sys.maxsize


def fitting_tokens(available: int, need_of: Callable[[int], Need]) -> int:
    """Tokens in one forward pass: the largest power of two whose need leaves a tenth of the memory free.

    Powers of two between 256 and 4096, so that a little more or less of free memory makes no other run of it.

    Args:
        available: Bytes; see `capacity`.
        need_of: What a run needs for a number of tokens.
    """
    tokens = MOST_TOKENS
    while tokens > _LEAST_TOKENS and need_of(tokens).peak > _USABLE * available:
        tokens //= 2
    return tokens


def largest_pass(lengths: Sequence[int], max_tokens: int) -> int:
    """Tokens of the largest forward pass over rows of these lengths, none of which may exceed `max_tokens`.

    Example:
        >>> largest_pass([8] * 100, 256), largest_pass([8] * 10, 256)
        (256, 80)
    """
    return max(len(rows) * max(lengths[row] for row in rows) for rows in micro_batches(lengths, max_tokens))


def batch_of(lm: LanguageModel, requests: Sequence[EditRequest], contexts: int, length: int, max_tokens: int) -> Batch:
    """Read off a batch of requests what the optimisation of its targets depends on.

    Args:
        lm: The language model.
        requests: The batch.
        contexts: Context templates, the empty one included.
        length: Tokens of one.
        max_tokens: Tokens in one forward pass at most.
    """
    tokens = tokenize(lm.tokenizer, [in_context(request, "", request.target_new) for request in requests])
    after = [len(entry.ids) - entry.subject_last for entry in tokens]
    return Batch(
        len(requests),
        contexts,
        length + max(entry.subject_last for entry in tokens),
        max(after),
        max(len(entry.target) for entry in tokens),
        largest_pass([columns for columns in after for _ in range(contexts)], max_tokens),
    )


def shapes_of(model: PreTrainedModel, sites: Sequence[EditSite]) -> Shapes:
    """Read the shapes off a model, which may have been made on the meta device."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    size = _largest(config, "head_dim") or config.hidden_size // heads
    d_in, d_out = sites[0].stored.shape if sites[0].fan_in_fan_out else sites[0].stored.shape[::-1]
    return Shapes(
        sum(parameter.numel() for parameter in model.parameters()),
        model.dtype.itemsize,
        config.num_hidden_layers,
        config.hidden_size,
        d_in,
        d_out,
        2 * size * (_largest(config, "num_key_value_heads") or heads),
        config.vocab_size,
        tuple(site.layer for site in sites),
    )


def _largest(config: Any, name: str) -> int | None:
    """A number of a configuration, the largest where its layers differ in it (Gemma 4); None if it has none."""
    try:
        found: int | None = getattr(config, name, None)
    except RuntimeError:  # how transformers says that it differs
        found = max(getattr(layer, name, None) or 0 for layer in config.per_layer_config)
    return found
