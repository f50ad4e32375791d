"""Attention for gradients against PyTorch's own."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from sphere_pl.model.attention import gradient_attention, grouped_attention


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


def test_the_models_own_attention_is_back_afterwards(tiny_lm):
    lm = tiny_lm()
    before = lm.config._attn_implementation
    with gradient_attention(lm):
        assert lm.config._attn_implementation != before
    assert lm.config._attn_implementation == before
