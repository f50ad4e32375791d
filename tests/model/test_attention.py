"""Attention for gradients against PyTorch's own."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from sphere_pl.model.attention import Packed, Packing, gradient_attention, grouped_attention


@pytest.mark.parametrize("kind", ["boolean", "additive", "none"])
@pytest.mark.parametrize("heads", [2, 6])
def test_grouped_attention_and_its_gradients_are_pytorchs(heads, kind):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, heads, 4, 8), (3, 2, 4 if kind == "none" else 9, 8), (3, 2, 4 if kind == "none" else 9, 8)]
    query, key, value = (torch.randn(s, generator=generator, dtype=torch.float32, requires_grad=True) for s in shapes)
    mask = None
    if kind != "none":
        mask = torch.rand(3, 1, 4, 9, generator=generator) > 0.3
        mask[..., 0] = True
    if kind == "additive":
        mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    wide_key, wide_value = (x.repeat_interleave(heads // 2, dim=1) for x in (key, value))
    expected = scaled_dot_product_attention(
        query, wide_key, wide_value, attn_mask=mask, scale=0.4, is_causal=mask is None
    ).transpose(1, 2)
    found, _ = grouped_attention(torch.nn.Identity(), query, key, value, mask, scaling=0.4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(x.square().sum(), [query, key, value]) for x in (found, expected)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_packed_rows_attend_as_each_group_does_by_itself():
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float32)

    sizes = [(3, 4, 5), (2, 1, 0)]  # rows, columns, cached
    groups = [
        Packed(
            rows,
            columns,
            drawn(rows, 2, cached, 8) if cached else None,
            drawn(rows, 2, cached, 6) if cached else None,
            torch.zeros(1, 1, columns, cached + columns).masked_fill(
                ~torch.ones(columns, cached + columns, dtype=torch.bool).tril(cached), -torch.inf
            ),
        )
        for rows, columns, cached in sizes
    ]
    query, key, value = (drawn(1, heads, 14, size).requires_grad_() for heads, size in ((4, 8), (2, 8), (2, 6)))
    found, _ = grouped_attention(torch.nn.Identity(), query, key, value, Packing(tuple(groups)), scaling=0.4)
    expected, start = [], 0
    for group in groups:
        stop = start + group.rows * group.columns
        q, k, v = (
            each[0, :, start:stop].unflatten(1, (group.rows, group.columns)).transpose(0, 1)
            for each in (query, key, value)
        )
        if group.keys is not None:
            k, v = torch.cat([group.keys, k], dim=2), torch.cat([group.values, v], dim=2)
        k, v = (each.repeat_interleave(2, dim=1) for each in (k, v))
        attended = scaled_dot_product_attention(q, k, v, attn_mask=group.mask, scale=0.4)
        expected.append(attended.transpose(1, 2).flatten(0, 1))
        start = stop
    torch.testing.assert_close(found[0], torch.cat(expected), rtol=1e-5, atol=1e-5)
    pull = drawn(14, 4, 6)
    ours = torch.autograd.grad((found[0] * pull).sum(), [query, key, value])
    theirs = torch.autograd.grad((torch.cat(expected) * pull).sum(), [query, key, value])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_models_own_attention_is_back_afterwards(tiny_lm):
    lm = tiny_lm()
    before = lm.config._attn_implementation
    with gradient_attention(lm):
        assert lm.config._attn_implementation != before
    assert lm.config._attn_implementation == before
