"""Attention for gradients through few new columns, on a CPU.

PyTorch's fused attention takes ten times as long backwards as forwards when rows are this short, and the one it is
composed of otherwise copies the cached keys and values once for every query head that shares them, and prepares them
for a gradient that nobody asks for. Written out for grouped heads it costs next to nothing.

Rows of different lengths can also go through a model *packed*: laid out one after the other as one long row, so that
every product and every element-wise operation of the blocks is called once for all of them. Only attention must know
the rows: it finds them in a `Packing`, which the blocks hand on in place of a mask.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface

from sphere_pl.model.language_model import LanguageModel

_NAME = "sphere_pl_grouped"


class Packed(NamedTuple):
    """Rows of one length that lie one after the other in a packed row, and what they attend to.

    Attributes:
        rows: How many.
        columns: Tokens of each.
        keys: Keys of the columns before, shape `[rows, key heads, cached, size]`; None without such columns.
        values: Values of the same columns, `[rows, key heads, cached, value size]`.
        mask: As `attention_mask` of `grouped_attention`, over cached columns and their own.
    """

    rows: int
    columns: int
    keys: Tensor | None
    values: Tensor | None
    mask: Tensor | None


class Packing:
    """What lies in a packed row, in its order."""

    def __init__(self, groups: tuple[Packed, ...]) -> None:
        self.groups = groups


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | Packing | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend in float32, the query heads that share a key head as rows of one product.

    Args:
        module: The attention module; unused, as the signature is Hugging Face's.
        query: Shape `[rows, heads, columns, size]`.
        key: Shape `[rows, key heads, keys, size]`.
        value: Shape `[rows, key heads, keys, value size]`.
        attention_mask: Additive or boolean, shape `[rows or 1, 1, columns, keys]`; causal to the last key if None. A
            packing if the rows are packed.
        scaling: Factor of the scores; one over the root of `size` if None.

    Returns:
        Shape `[rows, columns, heads, value size]`, and no weights.
    """
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    if not isinstance(attention_mask, Packing):
        group = Packed(query.shape[0], query.shape[2], None, None, attention_mask)
        return _attend(query, key, value, group, factor).to(query.dtype), None
    groups = attention_mask.groups
    sizes = [group.rows * group.columns for group in groups]
    parts = zip(*(each[0].split(sizes, dim=1) for each in (query, key, value)), groups, strict=True)
    found = []
    for *tensors, group in parts:
        rows = [part.unflatten(1, (group.rows, group.columns)).transpose(0, 1) for part in tensors]
        found.append(_attend(rows[0], rows[1], rows[2], group, factor).flatten(0, 1))
    return torch.cat(found)[None].to(query.dtype), None


def _attend(query: Tensor, key: Tensor, value: Tensor, group: Packed, factor: float) -> Tensor:
    """Attention of some rows to their cached columns and their own, float32 `[rows, columns, heads, value size]`."""
    rows, heads, columns, size = query.shape
    shared = heads // key.shape[1]
    scaled = (query.float() * factor).reshape(rows, key.shape[1], shared * columns, size)
    scores = scaled @ key.float().transpose(-1, -2)
    if group.keys is not None:  # two products, not one with cached and new keys copied together
        scores = torch.cat([scaled @ group.keys.float().transpose(-1, -2), scores], dim=-1)
    masked = _mask(scores.view(rows, heads, columns, -1), group.mask)
    weights = masked.softmax(-1).view(rows, key.shape[1], shared * columns, -1)
    cached = weights.shape[-1] - key.shape[2]
    attended = weights[..., cached:] @ value.float()
    if group.values is not None:
        attended = attended + weights[..., :cached] @ group.values.float()
    return attended.view(rows, heads, columns, -1).transpose(1, 2)


def _mask(scores: Tensor, mask: Tensor | None) -> Tensor:
    columns, keys = scores.shape[-2:]
    if mask is None:
        mask = torch.ones(columns, keys, dtype=torch.bool, device=scores.device).tril(keys - columns)
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask


def packs(lm: LanguageModel) -> bool:
    """Whether `gradient_attention` lets a model take packed rows.

    Attention must be a function and all that mixes tokens, and what is cached the keys and values that it is given.
    """
    whole = not lm.recurrent and not getattr(lm.config, "kv_lora_rank", None)
    return lm.device.type == "cpu" and _takes_function(lm) and not lm.spread and whole


def _takes_function(lm: LanguageModel) -> bool:
    """Whether a model attends by PyTorch's function now and by any other that it is given."""
    return lm.config._attn_implementation == "sdpa" and bool(lm.model._supports_attention_backend)


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
    if not _takes_function(lm):
        with sdpa_kernel(SDPBackend.MATH):
            yield
        return
    AttentionInterface.register(_NAME, grouped_attention)
    lm.config._attn_implementation = _NAME
    try:
        yield
    finally:
        lm.config._attn_implementation = chosen
