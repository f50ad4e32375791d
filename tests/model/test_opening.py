"""A tokenizer that is opened without torch is the one that a run has."""

import pytest
from transformers.models.auto import tokenization_auto

from sphere_pl.model import opening
from sphere_pl.model.architectures import ARCHITECTURES
from sphere_pl.model.opening import open_model, open_tokenizer


def test_it_is_the_one_of_a_run(model_folder):
    alone, whole = open_tokenizer(str(model_folder)), open_model(str(model_folder))
    assert opening._is_general(whole.source)
    assert type(alone.tokenizer) is type(whole.tokenizer)
    assert alone.tokenizer("Rome is <|end|> in")["input_ids"] == whole.tokenizer("Rome is <|end|> in")["input_ids"]
    assert alone.longest == whole.config.max_position_embeddings


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("config.json", '"llama"', '"qwen2"'),
        ("config.json", "max_position_embeddings", "left_out"),
        ("tokenizer_config.json", '"tokenizer_class": "', '"tokenizer_class": "Other'),
        ("tokenizer_config.json", "{", '{"auto_map": {}, '),
    ],
)
def test_what_transformers_would_read_in_another_way_is_left_to_it(model_folder, file, old, new):
    path = model_folder / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert not opening._is_general(opening.Source("model", str(model_folder), {}))


def test_no_family_that_is_read_without_torch_has_a_tokenizer_put_in_its_place():
    replaced = getattr(tokenization_auto, "MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS", ())
    general = [each for each in ARCHITECTURES if not each.startswith(opening._OWN_TOKENIZERS)]
    assert "llama" in general
    for family in set(general) & set(replaced):
        assert tokenization_auto.TOKENIZER_MAPPING_NAMES[family] in opening._GENERAL
