"""Parts that are found on a model against what the table, or a description, says of it."""

import pytest
import torch

from sphere_pl.editing.representations import SubjectStream, capture_input
from sphere_pl.errors import UserError
from sphere_pl.evaluation.scoring import answer_as_given
from sphere_pl.model.discovery import discover
from sphere_pl.model.families import output_path, read_factor
from sphere_pl.model.generation import continue_texts, decode, likeliest
from sphere_pl.model.language_model import PROMPT
from sphere_pl.model.loading import model_in_memory
from sphere_pl.model.tokens import Prompt, in_context, tokenize
from tests.conftest import make_tokenizer
from tests.others import FOUND, found_lm, other_lm


def found_in(model):
    return discover(model, torch.tensor([make_tokenizer()(PROMPT)["input_ids"][:16]]))


def assert_same(found, known, lm):
    assert (found.block, found.final_norm) == (known.block, known.final_norm)
    factors = [read_factor(each.logit_scale, lm.config, lm.model.config) for each in (found, known)]
    assert factors[0] == pytest.approx(factors[1], rel=1e-4)
    for layer in range(lm.n_layers):
        block = lm.block(layer)
        assert found.projection_in(block) == known.projection_in(block)
        assert set(found.mixers_in(block)) == set(known.mixers_in(block))
        if known.projection_in(block):
            paths = [output_path(each, lm.config, block) for each in (found, known)]
            assert paths[0].norm is paths[1].norm
            assert paths[0].scale == pytest.approx(paths[1].scale, rel=1e-4)
            assert found.fan_in_fan_out == known.fan_in_fan_out


def test_what_is_found_of_a_family_is_what_the_table_says(tiny_lm, family):
    lm = tiny_lm(family)
    assert_same(found_in(lm.model), lm.architecture, lm)


@pytest.mark.parametrize("name", ["opt", "gpt_neo", "llama4_text", "diffllama"])
def test_what_is_found_of_another_family_is_what_a_user_would_say(name):
    lm = other_lm(name)
    assert_same(found_in(lm.model), lm.architecture, lm)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_hides_no_part(tiny_lm, dtype):
    for family in ("gpt2", "granite", "olmo2", "falcon_h1"):
        lm = tiny_lm(family, dtype=dtype)
        found = found_in(lm.model)
        assert (found.projection, found.output_norm) == (lm.architecture.projection, lm.architecture.output_norm)


@pytest.fixture(params=FOUND)
def found(request):
    """Every family of a kind of its own, and what is found of it."""
    return found_lm(request.param), FOUND[request.param]


def test_each_kind_of_family_is_edited_where_its_stream_gains_a_linear_map(found):
    lm, matrices = found
    assert lm.editable_layers() == list(matrices)
    assert {site.layer: site.path for site in lm.sites(list(matrices))} == matrices


def test_keys_of_a_batch_are_what_the_matrix_is_given_in_a_plain_pass(found, requests):
    lm, matrices = found
    layers = list(matrices)[-2:]
    stream = SubjectStream(lm, requests, [""], layers[0])
    for site in lm.sites(layers):
        keys = stream.keys(site)
        for row, request in enumerate(requests):
            (tokens,) = tokenize(lm.tokenizer, [in_context(request, "")], lm.context)
            with torch.no_grad(), capture_input(site.module) as seen:
                lm.model(input_ids=torch.tensor([tokens.ids]))
            expected = seen[0].reshape(len(tokens.ids), -1)[tokens.subject_last]
            torch.testing.assert_close(keys[row], expected, rtol=1e-4, atol=1e-4)


def test_a_batch_is_continued_as_each_text_alone(found):
    assert_continued_alone(found[0])


def assert_continued_alone(lm):
    texts = ["The capital of France is", "Rome"]
    for text, tokens in zip(texts, continue_texts(lm, texts, 4, likeliest), strict=True):
        ids = lm.tokenizer(text)["input_ids"]
        for token in tokens:
            with torch.no_grad():
                assert lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax() == token
            ids = [*ids, token]


def test_a_model_that_knows_no_cache_of_ours_reads_each_text_from_its_beginning(caplog):
    lm = found_lm("mamba", {"projection": "mixer.out_proj"})
    assert not lm.cached
    assert "reads each text from its beginning" in caplog.text
    assert_continued_alone(lm)
    rows = [lm.tokenizer(text)["input_ids"] for text in ("Rome", "The capital of France is")]
    first = decode(lm, rows, 3, likeliest)
    shorter = decode(lm, rows, 3, likeliest, ended=lambda tokens: tokens == first[0][:1])
    assert shorter == [first[0][:1], first[1]]


@pytest.mark.skipif("bloom" not in FOUND, reason="a release that does not know it")
def test_a_text_lies_beside_no_other_where_a_model_makes_its_own_masks():
    lm = found_lm("bloom")
    assert not lm.takes_masks(2)
    prompts = [Prompt("The capital of France is", "Rome"), Prompt("The capital of Norway is", "Paris")]
    alone = [answer_as_given(lm, [prompt])[0] for prompt in prompts]
    for found, expected in zip(answer_as_given(lm, prompts), alone, strict=True):
        assert found.log_probability == pytest.approx(expected.log_probability, rel=1e-4)


def test_a_block_without_a_map_of_its_own_is_refused_with_the_matrix_that_can_be_named():
    lm = found_lm("mamba")
    with pytest.raises(UserError, match=r'"projection": "mixer.out_proj"'):
        lm.editable_layers()
    assert found_lm("mamba", {"projection": "mixer.out_proj"}).editable_layers() == [0, 1, 2, 3]


def test_blocks_that_are_called_again_are_refused(tiny_lm):
    model = tiny_lm().model
    model.model.layers[2] = model.model.layers[1]
    with pytest.raises(UserError, match="no list of 4 blocks that are called once each"):
        found_in(model)


def test_a_factor_that_no_number_of_the_model_is_is_measured(tiny_lm):
    lm = tiny_lm()
    for layer in range(4):
        lm.block(layer).mlp.register_forward_hook(lambda _, __, output: output * 0.37)
    assert found_in(lm.model).output_scale == "0.37"


def test_a_factor_that_differs_from_block_to_block_is_refused(tiny_lm):
    lm = tiny_lm()
    for layer in range(4):
        lm.block(layer).mlp.register_forward_hook(lambda _, __, output, layer=layer: output / (1 + layer))
    lm.model.config.model_type = "mine"
    with pytest.raises(UserError, match=r"what mlp.down_proj of block 1 puts out is not what"):
        model_in_memory("tiny", lm.model, lm.tokenizer)
