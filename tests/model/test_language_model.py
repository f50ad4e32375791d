import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sphere_pl.editing.representations import SubjectStream
from sphere_pl.errors import UserError
from sphere_pl.model.architectures import ARCHITECTURES, architecture_of
from sphere_pl.model.batching import pad
from sphere_pl.model.families import edit_sites
from sphere_pl.model.language_model import LanguageModel
from tests.conftest import SIZES


def _inputs(lm, texts):
    ids, mask = pad([lm.tokenizer(text)["input_ids"] for text in texts], lm.pad_id, lm.device)
    return ids, mask, torch.arange(ids.shape[1]).expand_as(ids)


def test_every_family_of_the_table_is_tested():
    experts_alone = {"mixtral", "qwen3_moe", "gpt_oss"}
    another_name = {"qwen3_5"}  # its text model alone is loaded, as qwen3_5_text
    assert set(ARCHITECTURES) == set(SIZES) | experts_alone | another_name


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
    with pytest.raises(UserError, match=r"'t5'.*Known types: .*llama.*--model.architecture"):
        architecture_of("t5")


def test_routed_experts_alone_are_refused_and_say_so():
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        "qwen3_moe", **sizes, moe_intermediate_size=16, num_experts=4, mlp_only_layers=[0], vocab_size=50, head_dim=8
    )
    model, architecture = AutoModelForCausalLM.from_config(config), architecture_of("qwen3_moe")
    assert [site.path for site in edit_sites(model, architecture, config, [0], 2)] == ["mlp.down_proj"]
    with pytest.raises(UserError, match=r"Layer 1 consists of routed experts, .*Layers with one: 0\."):
        edit_sites(model, architecture, config, [0, 1], 2)


def test_a_family_of_ones_own_is_described_by_a_dictionary(tiny_lm):
    known = tiny_lm()
    known.model.config.model_type = "mine"
    own = {"block": "model.layers.{}", "projection": "mlp.down_proj", "final_norm": "model.norm"}
    lm = LanguageModel(known.model, known.tokenizer, own)
    assert lm.sites([1])[0].name == "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"block": "model.blocks.{}"}, r"'model.blocks.3' as its block.* begin with model, model.embed_tokens"),
        ({"final_norm": "model.last"}, "'model.last' as its final_norm"),
        ({"attention": "attn"}, "'attn' as its attention.* They hold self_attn, mlp"),
        ({"block": "model.layers.0"}, r"`architecture.block='model.layers.0'` needs \{\}"),
        ({"norm": "mlp"}, "the entry 'norm'.*takes block"),
        ({"recurrent": "yes"}, "`architecture.recurrent='yes'` must be true or false"),
        ({"mixers": "conv"}, "must be a list of module paths"),
        ({"logit_scale": "no_such_number"}, "'no_such_number' .*is no number"),
        ({"logit_scale": "mlp_bias.1"}, "'mlp_bias.1' .*is no number"),
    ],
)
def test_an_entry_of_ones_own_that_does_not_fit_is_refused_by_name(tiny_lm, own, words):
    lm = tiny_lm()
    with pytest.raises(UserError, match=words):
        LanguageModel(lm.model, lm.tokenizer, own)


def test_a_projection_or_a_norm_that_is_not_there_is_refused_when_it_is_to_be_edited(tiny_lm):
    lm = tiny_lm()
    for own, words in (
        ({"projection": "mlp.out"}, "no module 'mlp.out'"),
        ({"output_norm": "last"}, "output norm 'last'"),
    ):
        with pytest.raises(UserError, match=words):
            LanguageModel(lm.model, lm.tokenizer, own).sites([1])


def test_no_text_is_read_whose_length_would_turn_those_beside_it(tiny_lm, requests):
    lm = tiny_lm("phi3")
    assert lm.context == lm.config.max_position_embeddings
    lm.config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 8}
    assert lm.context == 8
    with pytest.raises(UserError, match="reads at most 8"):
        SubjectStream(lm, requests, ["", "Therefore a pianist. "], 1)
