"""Attention for gradients through few new columns, on a CPU.

PyTorch's fused attention takes ten times as long backwards as forwards when rows are this short, and the one it is
composed of otherwise copies the cached keys and values once for every query head that shares them, and prepares them
for a gradient that nobody asks for. Written out for grouped heads it costs next to nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface

from sphere_pl.language_model import LanguageModel

_NAME = "sphere_pl_grouped"


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend in float32, the query heads that share a key head as rows of one product.

    Args:
        module: The attention module; unused, as the signature is Hugging Face's.
        query: Shape `[rows, heads, columns, size]`.
        key: Shape `[rows, key heads, keys, size]`.
        value: Shape `[rows, key heads, keys, value size]`.
        attention_mask: Additive or boolean, shape `[rows or 1, 1, columns, keys]`; causal to the last key if None.
        scaling: Factor of the scores; one over the root of `size` if None.

    Returns:
        Shape `[rows, columns, heads, value size]`, and no weights.
    """
    rows, heads, columns, size = query.shape
    shared = heads // key.shape[1]
    scaled = query.float() * (size**-0.5 if scaling is None else scaling)
    scores = scaled.reshape(rows, key.shape[1], shared * columns, size) @ key.float().transpose(-1, -2)
    masked = _mask(scores.view(rows, heads, columns, -1), attention_mask)
    weights = masked.softmax(-1).view(rows, key.shape[1], shared * columns, -1)
    attended = (weights @ value.float()).view(rows, heads, columns, -1)
    return attended.transpose(1, 2).to(query.dtype), None


def _mask(scores: Tensor, mask: Tensor | None) -> Tensor:
    columns, keys = scores.shape[-2:]
    if mask is None:
        mask = torch.ones(columns, keys, dtype=torch.bool, device=scores.device).tril(keys - columns)
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask


@contextmanager
def gradient_attention(lm: LanguageModel) -> Iterator[None]:
    """Let the model attend in a way that is fast backwards.

    On an accelerator nothing is changed. Models that do not use PyTorch's attention keep their own. Masks must have
    been made before (`LanguageModel.block_calls`): the model knows none for this attention and would leave them out.
    """
    chosen = lm.config._attn_implementation
    if lm.device.type != "cpu":
        yield
        return
    if chosen != "sdpa":
        with sdpa_kernel(SDPBackend.MATH):
            yield
        return
    AttentionInterface.register(_NAME, grouped_attention)
    lm.config._attn_implementation = _NAME
    try:
        yield
    finally:
        lm.config._attn_implementation = chosen
