"""Parts that are found on a model against what the table, or a description, says of it."""

import pytest
import torch

from sphere_pl.errors import UserError
from sphere_pl.model.discovery import discover
from sphere_pl.model.families import output_path, read_factor
from sphere_pl.model.language_model import PROMPT
from tests.conftest import make_tokenizer
from tests.others import OTHERS, other_lm, other_model


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
