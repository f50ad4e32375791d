"""The check at load: every family passes it, in every dtype, and an entry that is wrong does not."""

import pytest
import torch

from sphere_pl.errors import UserError
from sphere_pl.model.attention import packs
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.self_check import check_parts, taken_apart
from tests.conftest import FAMILIES, make_tokenizer
from tests.model.test_spread_models import scattered
from tests.others import ATTENDING_OTHERWISE, OTHERS, other_lm, other_model
from tests.pretend import pretending

DTYPES = [torch.float32, torch.bfloat16]


def described(lm, **own):
    """The same model under another description."""
    return LanguageModel(lm.model, lm.tokenizer, own)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_family_is_what_the_table_says(tiny_lm, family, dtype):
    check_parts(tiny_lm(family, dtype=dtype))


def test_a_model_on_several_devices_is_checked_as_well(tiny_lm):
    lm = scattered(tiny_lm("gptj"), hooked=True)
    with pretending():
        check_parts(lm)


WRONG = [
    ("granite", {"logit_scale": ""}, "logits .* logit_scale"),
    ("cohere", {"logit_scale": "1/logit_scale"}, "logits .* logit_scale"),
    ("llama", {"final_norm": "model.layers.0.input_layernorm"}, "logits .* final_norm"),
    ("granite", {"output_scale": ""}, "mlp.down_proj of block 0 .* output_scale"),
    ("minicpm3", {"output_scale": ""}, "mlp.down_proj of block 0 .* output_scale"),
    ("falcon_h1", {"output_scale": "mlp_multipliers.0"}, "feed_forward.down_proj of block 0 .* output_scale"),
    ("gemma3_text", {"output_norm": ""}, "mlp.down_proj of block 0 .* output_norm"),
    ("olmo2", {"output_norm": "post_attention_layernorm"}, "mlp.down_proj of block 0 .* output_norm"),
    ("llama", {"projection": "mlp.up_proj"}, "'mlp.up_proj' .*shape .48, 32"),
    ("gpt2", {"fan_in_fan_out": False}, "'mlp.c_proj' .*fan_in_fan_out"),
    ("falcon_h1", {"mixers": []}, "block 0 changes the residual stream"),
    ("lfm2", {"recurrent": False}, "cache.* recurrent"),
    ("qwen3_5_text", {"recurrent": False}, "cache.* recurrent"),
]
KNOWN = [entry for entry in WRONG if entry[0] in FAMILIES]  # older releases of transformers know fewer families


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "own", "words"), KNOWN, ids=[f"{name}-{next(iter(own))}" for name, own, _ in KNOWN])
def test_a_wrong_entry_is_refused_by_name(tiny_lm, name, own, words, dtype):
    lm = tiny_lm(name, dtype=dtype)
    for place, parameter in enumerate(p for p in lm.model.parameters() if p.ndim == 1):  # no two norms are alike
        parameter.data += torch.rand(parameter.shape, generator=torch.Generator().manual_seed(place)).to(dtype)
    with pytest.raises(UserError, match=words):
        check_parts(described(lm, **own))


def test_a_matrix_whose_product_is_rounded_is_refused(tiny_lm):
    lm = tiny_lm()
    lm.block(0).mlp.down_proj.register_forward_hook(lambda _, __, output: output.round(decimals=1))
    with pytest.raises(UserError, match="block 0 puts out something else than its weight makes of its input"):
        check_parts(lm)


def test_a_norm_that_is_no_rms_norm_is_refused(tiny_lm):
    lm = tiny_lm("olmo2")
    for layer in range(4):
        lm.block(layer).post_feedforward_layernorm = torch.nn.LayerNorm(32)
    with pytest.raises(UserError, match="post_feedforward_layernorm is no RMS norm"):
        check_parts(lm)


def test_a_block_that_adds_to_what_a_matrix_puts_out_in_place_is_taken():
    check_parts(other_lm("llama4_text"))


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")
def test_a_family_that_takes_positions_off_the_columns_is_refused():
    with pytest.raises(UserError, match="positions of their own"):
        check_parts(other_lm("mbart"))


def test_a_family_that_reads_what_is_masked_is_refused(tiny_lm):
    lm = tiny_lm()
    attend = lm.block(0).self_attn.forward
    lm.block(0).self_attn.forward = lambda **kwargs: attend(**{**kwargs, "attention_mask": None})
    with pytest.raises(UserError, match="block 0 reads what is masked"):
        check_parts(lm)


def test_a_layer_that_attends_otherwise_than_the_one_before_is_checked_whatever_the_configuration_calls_it():
    lm = other_lm("gpt_neo")  # every second layer attends to a window
    attend = lm.block(1).attn.forward
    lm.block(1).attn.forward = lambda *args, **kwargs: attend(*args, **{**kwargs, "attention_mask": None})
    with pytest.raises(UserError, match="block 1 reads what is masked"):
        check_parts(lm)


@pytest.mark.parametrize("error", [TypeError("not enough"), IndexError("out of range"), RuntimeError("of size 4")])
def test_what_breaks_off_in_a_models_own_code_is_refused_in_its_words(tiny_lm, error):
    model = tiny_lm().model
    words = f"cannot be run one by one .*{type(error).__name__}: {error}"
    with pytest.raises(UserError, match=words), taken_apart(model):
        raise error


def test_blocks_that_norm_the_stream_itself_are_refused():
    model = other_model("rwkv")
    with pytest.raises(UserError, match=r"rwkv.* block 0 changes the residual stream"), taken_apart(model):
        check_parts(LanguageModel(model, make_tokenizer(), OTHERS["rwkv"]))


def test_a_users_mistake_and_memory_that_is_used_up_are_not_taken_for_a_family_that_does_not_fit(tiny_lm):
    model = tiny_lm().model
    for error in (UserError("a mistake"), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with pytest.raises(type(error)) as raised, taken_apart(model):
            raise error
        assert raised.value is error


def test_families_of_the_table_attend_as_fast_as_they_can(tiny_lm, family):
    lm = tiny_lm(family)
    check_parts(lm)
    assert not lm.own_attention


@ATTENDING_OTHERWISE
@pytest.mark.parametrize("name", ["diffllama", "doge"])
def test_a_family_that_attends_otherwise_for_gradients_keeps_its_own_attention(name):
    lm = other_lm(name)
    assert packs(lm)
    check_parts(lm)
    assert lm.own_attention
    assert not packs(lm)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_whose_tokens_see_those_after_them_is_refused(tiny_lm, dtype):
    lm = tiny_lm("gemma3_text", dtype=dtype)
    config = type(lm.config)(**{**lm.config.to_dict(), "use_bidirectional_attention": True})
    model = type(lm.model)(config).to(dtype)
    model.load_state_dict(lm.model.state_dict())
    with pytest.raises(UserError, match="block 0 lets tokens see those that come after them"):
        check_parts(LanguageModel(model, lm.tokenizer))


def test_layers_that_read_earlier_tokens_in_another_way_are_a_kind_of_their_own():
    lm = other_lm("llama4_text")  # of four layers the last attends to all tokens, the others to chunks of them
    lm.block(3).register_forward_hook(lambda _, __, output: 2 * output)
    with pytest.raises(UserError, match="block 3 changes the residual stream"):
        check_parts(lm)
