import pytest
import torch

from sphere_pl.model.frozen_prefix import run_prefix

TOKENS, CUT = [5, 6, 7, 8, 9, 3], 4


def _logits_of_the_suffix(lm, prefix, start=CUT):
    ids, positions = torch.tensor([TOKENS[start:]]), torch.arange(start, len(TOKENS))[None]
    calls = prefix.calls(lm, ids, torch.ones(1, len(TOKENS), dtype=torch.long), positions)
    return lm.logits(lm.run(calls.hidden, calls, 0, lm.n_layers))


@torch.no_grad()
def test_a_suffix_after_a_prefix_gives_the_logits_of_the_whole_text(tiny_lm, family):
    lm = tiny_lm(family)
    if lm.recurrent:
        pytest.skip("every prompt is run whole")
    ids = torch.tensor([TOKENS])
    expected = lm.model(input_ids=ids).logits[:, CUT:].float()
    prefix = run_prefix(lm, ids[:, :CUT], torch.ones(1, CUT, dtype=torch.long))
    torch.testing.assert_close(_logits_of_the_suffix(lm, prefix), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_suffix_leaves_the_prefix_as_it_was(tiny_lm):
    lm = tiny_lm()
    prefix = run_prefix(lm, torch.tensor([TOKENS[:CUT]]), torch.ones(1, CUT, dtype=torch.long))
    first = _logits_of_the_suffix(lm, prefix)
    assert prefix.get_seq_length() == CUT
    assert torch.equal(_logits_of_the_suffix(lm, prefix), first)


@torch.no_grad()
def test_rows_are_kept_and_repeated_in_keys_and_values_of_every_layer(tiny_lm):
    lm = tiny_lm()
    ids = torch.tensor([[5, 6, 7], [8, 9, 3]])
    both = run_prefix(lm, ids, torch.ones_like(ids))
    second = both.select(torch.tensor([1]))
    for of_both, of_second, repeated in zip(
        both.keys + both.values,
        second.keys + second.values,
        second.expand(3).keys + second.expand(3).values,
        strict=True,
    ):
        assert torch.equal(of_second, of_both[1:])
        assert torch.equal(repeated, of_both[[1, 1, 1]])


@torch.no_grad()
def test_an_empty_prefix_is_none_at_all(tiny_lm):
    lm = tiny_lm()
    empty = run_prefix(lm, torch.empty(1, 0, dtype=torch.long), torch.empty(1, 0, dtype=torch.long))
    expected = lm.model(input_ids=torch.tensor([TOKENS])).logits.float()
    torch.testing.assert_close(_logits_of_the_suffix(lm, empty, 0), expected, rtol=1e-4, atol=1e-4)
