"""What rows begin with is computed once, and is what each row would have computed for itself."""

import pytest
import torch

from sphere_pl.model.batching import pad
from sphere_pl.model.beginnings import Beginnings
from sphere_pl.model.frozen_prefix import run_prefix
from sphere_pl.model.language_model import LanguageModel
from tests.others import other_lm

ROWS = [[5, 6, 7, 8], [5, 6, 9], [], [5, 6, 7, 3, 2], [4]]


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "falcon", "deepseek_v3"])
def test_keys_and_values_are_those_of_each_row_by_itself(tiny_lm, family):
    lm = tiny_lm(family)
    chosen = [3, 0, 2, 1]
    found, mask = Beginnings(lm, ROWS, 64).of(chosen)
    ids, expected_mask = pad([ROWS[row] for row in chosen], lm.pad_id, lm.device)
    expected = run_prefix(lm, ids, expected_mask)
    assert torch.equal(mask, expected_mask)
    for ours, theirs in zip([*found.keys, *found.values], [*expected.keys, *expected.values], strict=True):
        for row, number in enumerate(chosen):
            real = len(ROWS[number])
            torch.testing.assert_close(ours[row, :, :real], theirs[row, :, :real], rtol=1e-4, atol=1e-5)


def test_a_beginning_that_rows_share_runs_once(tiny_lm, monkeypatch):
    lm, tokens, run = tiny_lm(), [], LanguageModel.run

    def counting(self, hidden, *rest):
        tokens.append(hidden.shape[0] * hidden.shape[1])
        return run(self, hidden, *rest)

    monkeypatch.setattr(LanguageModel, "run", counting)
    before = Beginnings(lm, ROWS, 64)
    before.of([0, 1])
    before.of([2, 3])
    assert tokens == [8]  # 5 6 (7 (8, 3 2), 9), 4


def test_rows_are_alone_where_a_pass_has_room_for_no_more(tiny_lm):
    lm = tiny_lm()
    together, alone = (Beginnings(lm, rows, 1).of([0])[0] for rows in (ROWS, ROWS[:1]))
    assert all(torch.equal(a, b) for a, b in zip(together.keys, alone.keys, strict=True))


def test_rows_without_a_beginning_have_an_empty_prefix(tiny_lm):
    prefix, mask = Beginnings(tiny_lm(), [[], []], 64).of([0, 1])
    assert prefix.keys == []
    assert mask.shape == (2, 0)


def test_a_window_of_the_attentions_own_does_not_cut_what_stands_behind_another_branch():
    lm = other_lm("gpt_neo", window_size=4)
    found, _ = Beginnings(lm, ROWS, 64).of([1])  # its last token would stand in column 7, its first in 0
    expected = run_prefix(lm, *pad([ROWS[1]], lm.pad_id, lm.device))
    for ours, theirs in zip([*found.keys, *found.values], [*expected.keys, *expected.values], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_rows_longer_than_a_chunk_of_attention_share_nothing():
    lm = other_lm("llama4_text", attention_chunk_size=4)
    assert lm.takes_masks(4)
    assert not lm.takes_masks(5)


@pytest.mark.parametrize("name", ["mistral", "gemma3_text", "llama4_text"])
def test_what_follows_beginnings_of_several_lengths_is_as_far_from_them_as_in_each_row(tiny_lm, name):
    if name == "llama4_text":
        lm = other_lm(name, attention_chunk_size=4)
    else:
        lm = tiny_lm(name)
        lm.config.sliding_window = 4  # masks are made from it at every call
    suffix = [2, 9, 4]
    prefix, mask = Beginnings(lm, ROWS, 64, len(suffix)).of(range(len(ROWS)))
    ids = torch.tensor([suffix] * len(ROWS))
    positions = torch.tensor([[len(row) + place for place in range(len(suffix))] for row in ROWS])
    calls = prefix.calls(lm, ids, torch.cat([mask, torch.ones_like(ids)], dim=1), positions)
    found = lm.run(calls.hidden, calls, 0, lm.n_layers)
    for row, state in zip(ROWS, found, strict=True):
        whole = torch.tensor([row + suffix])
        calls = lm.block_calls(whole, torch.ones_like(whole), torch.arange(whole.shape[1])[None])
        expected = lm.run(calls.hidden, calls, 0, lm.n_layers)[0, len(row) :]
        torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-4)
