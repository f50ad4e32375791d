import pytest
import torch

from sphere_pl.errors import UserError
from sphere_pl.model.families import ARCHITECTURES, edit_sites
from sphere_pl.model.tokens import pad
from tests.conftest import FAMILIES


def _inputs(lm, texts):
    ids, mask = pad([lm.tokenizer(text)["input_ids"] for text in texts], lm.pad_id, lm.device)
    return ids, mask, torch.arange(ids.shape[1]).expand_as(ids)


def test_every_family_of_the_table_is_tested():
    assert sorted(ARCHITECTURES) == FAMILIES  # what the fixture `family` goes through


def test_blocks_run_one_by_one_give_the_models_own_logits(tiny_lm, family):
    lm = tiny_lm(family)
    ids, mask, positions = _inputs(lm, ["The capital of France is Paris", "Rome is a city"])
    with torch.no_grad():
        calls = lm.block_calls(ids, mask, positions)
        found = lm.logits(lm.run(calls.hidden, calls, 0, lm.n_layers))
        expected = lm.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()])


def test_left_and_right_padding_give_the_same_logits(tiny_lm, family):
    lm = tiny_lm(family)
    ids, mask, positions = _inputs(lm, ["The capital of France is Paris", "Rome is a city"])
    turned = [torch.stack([row.roll(int((1 - keep).sum())) for row, keep in zip(each, mask, strict=True)])
              for each in (ids, mask)]  # fmt: skip
    shifted = (turned[1].cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        right = lm.block_calls(ids, mask, positions)
        left = lm.block_calls(*turned, shifted)
        found = lm.logits(lm.run(left.hidden, left, 0, lm.n_layers))[turned[1].bool()]
        expected = lm.logits(lm.run(right.hidden, right, 0, lm.n_layers))[mask.bool()]
    assert not torch.equal(turned[1], mask)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_asking_for_block_calls_leaves_the_model_as_it_was(tiny_lm, family):
    lm = tiny_lm(family)
    ids, mask, positions = _inputs(lm, ["Rome is a city"])
    with torch.no_grad():
        before = lm.model(input_ids=ids).logits
        lm.block_calls(ids, mask, positions)
        assert torch.equal(lm.model(input_ids=ids).logits, before)
    assert all("forward" not in vars(lm.block(layer)) for layer in range(lm.n_layers))


def test_blocks_are_restored_when_the_model_fails(tiny_lm):
    lm = tiny_lm()
    ids, mask, positions = _inputs(lm, ["Rome is a city"])
    with pytest.raises(IndexError):
        lm.block_calls(ids + 10_000, mask, positions)
    assert "forward" not in vars(lm.block(0))


def test_the_model_stays_in_eval_mode(tiny_lm):
    lm = tiny_lm("gpt2").train()
    assert not any(module.training for module in lm.modules())


def test_a_site_reads_and_writes_d_out_by_d_in(tiny_lm, family):
    lm = tiny_lm(family)
    (site,) = lm.sites([2])
    weight = site.read()
    assert weight.shape == (32, 48)
    assert dict(lm.model.named_parameters())[site.name] is site.stored
    keys = torch.randn(3, 48)
    bias = site.module.bias if getattr(site.module, "bias", None) is not None else 0
    torch.testing.assert_close(site.module(keys), keys @ weight.T + bias)
    site.write(weight + 1)
    torch.testing.assert_close(site.read(), weight + 1)


@pytest.mark.parametrize(("layers", "words"), [([7], "layers 0 to 3"), ([2, 1], "must ascend"), ([], "no layer")])
def test_layers_that_cannot_be_edited_are_refused(tiny_lm, layers, words):
    lm = tiny_lm()
    with pytest.raises(UserError, match=words):
        lm.sites(layers)


def test_an_unknown_model_type_is_refused_with_the_known_ones(tiny_lm):
    with pytest.raises(UserError, match=r"'t5'.*Known types: .*llama"):
        edit_sites(tiny_lm().model, "t5", [0], 4)
