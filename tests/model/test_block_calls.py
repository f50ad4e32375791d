import pytest
import torch

from sphere_pl.model.block_calls import BlockCalls


def _inputs(lm, text):
    ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
    return ids, torch.ones_like(ids), torch.arange(ids.shape[1])[None]


def test_asking_for_block_calls_leaves_the_model_as_it_was(tiny_lm, family):
    lm = tiny_lm(family)
    ids, mask, positions = _inputs(lm, "Rome is a city")
    with torch.no_grad():
        before = lm.model(input_ids=ids).logits
        lm.block_calls(ids, mask, positions)
        assert torch.equal(lm.model(input_ids=ids).logits, before)
    assert all("forward" not in vars(lm.block(layer)) for layer in range(lm.n_layers))


def test_blocks_are_restored_when_the_model_fails(tiny_lm):
    lm = tiny_lm()
    ids, mask, positions = _inputs(lm, "Rome is a city")
    with pytest.raises(IndexError):
        lm.block_calls(ids + 10_000, mask, positions)
    assert "forward" not in vars(lm.block(0))


def test_the_calls_are_noted_without_a_block_being_run(tiny_lm, family):
    lm = tiny_lm(family)
    parts = [part for layer in range(lm.n_layers) for part in lm.block(layer).children()]
    hooks = [part.register_forward_hook(lambda *_: pytest.fail("a block ran")) for part in parts]
    calls = lm.block_calls(*_inputs(lm, "Rome is a city"))
    for hook in hooks:
        hook.remove()
    assert len(calls.args) == len(calls.kwargs) == len(calls.devices) == lm.n_layers


def test_the_very_object_is_replaced_in_every_call_and_no_equal_one():
    old, equal = [1], [1]
    calls = BlockCalls(torch.zeros(1), [(old, equal)], [{"cache": old, "mask": equal}], [torch.device("cpu")])
    found = calls.replace(old, "new")
    assert found.args == [("new", [1])]
    assert found.kwargs == [{"cache": "new", "mask": [1]}]
    assert calls.args[0][0] is old
