"""Attention for gradients through few new columns, on a CPU.

PyTorch's fused attention takes ten times as long backwards as forwards when rows are this short, and the one it is
composed of otherwise copies the cached keys and values once for every query head that shares them, and prepares them
for a gradient that nobody asks for. Written out for grouped heads it costs next to nothing.

Rows of different lengths can also go through a model *packed*: laid out one after the other as one long row, so that
every product and every element-wise operation of the blocks is called once for all of them. Only attention must know
the rows: it finds them in a `Packing`, which the blocks hand on in place of a mask.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
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
        mask: What is added to the scores, over cached columns and their own, `[rows or 1, 1, columns, keys]`.
    """

    rows: int
    columns: int
    keys: Tensor | None
    values: Tensor | None
    mask: Tensor


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
    if isinstance(attention_mask, Packing):
        found = _Attention.apply(query[0], key[0], value[0], attention_mask.groups, factor)  # type: ignore[no-untyped-call]
        return found[None], None
    rows, _heads, columns, _size = query.shape
    group = Packed(rows, columns, None, None, added(attention_mask, columns, key.shape[2], query.device))
    packed = (each.transpose(0, 1).flatten(1, 2) for each in (query, key, value))
    return _Attention.apply(*packed, (group,), factor).unflatten(0, (rows, columns)), None  # type: ignore[no-untyped-call]


def added(mask: Tensor | None, columns: int, keys: int, device: torch.device) -> Tensor:
    """What a mask adds to the scores, shape `[rows or 1, 1, columns, keys]`: that of a boolean one, or causal if None.

    Example:
        >>> added(None, 2, 3, torch.device("cpu"))[0, 0].tolist()
        [[0.0, 0.0, -inf], [0.0, 0.0, 0.0]]
    """
    if mask is None:
        mask = torch.ones(1, 1, columns, keys, dtype=torch.bool, device=device).tril(keys - columns)
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -torch.inf)


class _Attended(NamedTuple):
    """What the gradient of one group needs, float32.

    Attributes:
        query: Times the factor, `[rows * key heads, query heads of each * columns, size]`.
        keys: `[rows * key heads, cached and own, size]`.
        values: `[rows * key heads, cached and own, value size]`.
        weights: `[rows * key heads, query heads of each * columns, cached and own]`.
        sizes: Rows, key heads, query heads of each, columns.
        own: How many of the keys are not cached.
    """

    query: Tensor
    keys: Tensor
    values: Tensor
    weights: Tensor
    sizes: tuple[int, int, int, int]
    own: int


class _Attention(torch.autograd.Function):
    """Attention of packed rows, group after group, with its gradient written out.

    With rows as short as these, autograd's bookkeeping for some thirty operations a group takes as long as they do.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, groups: Sequence[Packed], factor: float) -> Tensor:
        """From queries, keys and values `[heads, tokens, size]` the result, `[tokens, heads, value size]`."""
        ctx.groups, ctx.factor = groups, factor
        parts = zip(
            *(_of_groups(each, 1, groups) for each in (query.float() * factor, key, value)), groups, strict=True
        )
        ctx.attended = [_attended(*part) for part in parts]
        return torch.cat([_result(each) for each in ctx.attended]).to(query.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries, keys and values; masks, and what is cached, are constants."""
        pulls = _of_groups(gradient.float(), 0, ctx.groups)
        found = [_gradients(each, pull, ctx.factor) for each, pull in zip(ctx.attended, pulls, strict=True)]
        return *(torch.cat(parts, dim=1).to(gradient.dtype) for parts in zip(*found, strict=True)), None, None


def _of_groups(packed: Tensor, dim: int, groups: Sequence[Packed]) -> Sequence[Tensor]:
    """The tokens of each group; rows that are alone may have other keys than columns."""
    return [packed] if len(groups) == 1 else packed.split([group.rows * group.columns for group in groups], dim)


def _attended(query: Tensor, key: Tensor, value: Tensor, group: Packed) -> _Attended:
    """What the queries `[heads, rows * columns, size]` of a group, float32 and times the factor, weigh."""
    rows, columns, heads = group.rows, group.columns, len(key)
    sizes = rows, heads, len(query) // heads, columns
    of_rows = query.view(heads, sizes[2], rows, columns, -1).permute(2, 0, 1, 3, 4)
    scaled = of_rows.reshape(rows * heads, sizes[2] * columns, -1)
    keys, values = _joined(group.keys, key, rows), _joined(group.values, value, rows)
    scores = torch.bmm(scaled, keys.transpose(1, 2)).view(*sizes, -1)
    weights = scores.add_(group.mask.unsqueeze(2)).softmax(-1).view(rows * heads, sizes[2] * columns, -1)
    return _Attended(scaled, keys, values, weights, sizes, key.shape[1] // rows)


def _joined(cached: Tensor | None, own: Tensor, rows: int) -> Tensor:
    """Cached keys or values, and `own` `[key heads, rows * keys, size]`, as `_Attended` has them."""
    of_rows = own.unflatten(1, (rows, -1)).transpose(0, 1)
    return (of_rows if cached is None else torch.cat([cached, of_rows], dim=2)).float().flatten(0, 1)


def _result(each: _Attended) -> Tensor:
    """`[rows * columns, heads, value size]`."""
    rows, heads, shared, columns = each.sizes
    found = torch.bmm(each.weights, each.values).view(*each.sizes, -1)
    return found.permute(0, 3, 1, 2, 4).reshape(rows * columns, heads * shared, -1)


def _gradients(each: _Attended, gradient: Tensor, factor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Those of queries, own keys and own values `[heads, rows * keys, size]`, from that of the result."""
    rows, heads, shared, columns = each.sizes
    pull = gradient.view(rows, columns, heads, shared, -1).permute(0, 2, 3, 1, 4)
    pull = pull.reshape(rows * heads, shared * columns, -1)
    of_scores = torch.bmm(pull, each.values.transpose(1, 2))
    of_scores = torch._softmax_backward_data(of_scores, each.weights, -1, torch.float32)
    query = torch.bmm(of_scores, each.keys).mul_(factor).view(*each.sizes, -1)
    key = torch.bmm(of_scores[..., -each.own :].transpose(1, 2), each.query)
    value = torch.bmm(each.weights[..., -each.own :].transpose(1, 2), pull)
    key, value = (part.view(rows, heads, each.own, -1).transpose(0, 1).flatten(1, 2) for part in (key, value))
    return query.permute(1, 2, 0, 3, 4).reshape(heads * shared, rows * columns, -1), key, value


def packs(lm: LanguageModel) -> bool:
    """Whether `gradient_attention` lets a model take packed rows.

    Attention must be a function and all that mixes tokens, and what is cached the keys and values that it is given.
    """
    whole = not lm.recurrent and not getattr(lm.config, "kv_lora_rank", None)
    return lm.device.type == "cpu" and _takes_function(lm) and not lm.spread and whole


def _takes_function(lm: LanguageModel) -> bool:
    """Whether a model attends by PyTorch's function now and, as the check at load found, by another as well."""
    given = lm.config._attn_implementation == "sdpa" and bool(lm.model._supports_attention_backend)
    return given and not lm.own_attention


@contextmanager
def gradient_attention(lm: LanguageModel) -> Iterator[None]:
    """Let the model attend in a way that is fast backwards.

    On an accelerator nothing is changed. Models that do not use PyTorch's attention keep their own, and so do those
    that the check at load found to attend otherwise then. Masks must have been made before
    (`LanguageModel.block_calls`): the model knows none for this attention and would leave them out.
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
