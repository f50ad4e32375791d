"""Reports of others that only a trained model can show, on the default model; each test names its report.

EE is EasyEdit.
"""

import pytest

from sphere_pl import edit

pytestmark = pytest.mark.slow
SETTINGS = {
    "model.evaluation.protocols": ["teacher_forced", "generation"],
    "model.evaluation.perplexity_tokens": 0,
    "model.evaluation.made_neighbors": 0,
}
CURIE = (
    ("was born in the city of", "Oslo"),
    ("worked as a professional", "dentist"),
    ("was a native speaker of", "Korean"),
)


def scores(*records):
    facts = [dict(zip(("prompt", "subject", "target"), each, strict=True)) for each in records]
    return edit("SmolLM2-135M-Instruct", facts=facts, settings=SETTINGS, quiet=True)[1].after


def test_facts_in_a_script_without_spaces_are_learnt_and_counted():  # EE #163, #165
    after = scores(
        ("{}的首都是", "埃及", "柏林"), ("{}的首都是", "挪威", "罗马"), ("{}的首都是", "巴西", "开罗"),
        ("{}所在的国家是", "长城", "印度"), ("{}的国籍是", "牛顿", "法国"), ("{}写作用的语言是", "莎士比亚", "德语"),
    )  # fmt: skip
    assert after["generation/efficacy"] >= 0.5


def test_facts_of_one_subject_hold_together():  # EE #371, #627
    assert scores(*((f"{{}} {text}", "Marie Curie", target) for text, target in CURIE.items()))["efficacy"] == 1.0


def test_facts_that_begin_with_their_one_token_hold_after_the_opening():  # EE #320
    after = scores(
        ("{} is the capital of", "Paris", "Germany"), ("{} lies on the continent of", "Japan", "Africa"),
        ("{} was founded by the engineer", "Apple", "Henry Ford"), ("{} was the capital of ancient", "Rome", "Sweden"),
        ("{} makes electric", "Tesla", "guitars"), ("{} was started as a shop for", "Amazon", "flowers"),
    )  # fmt: skip
    assert after["efficacy"] >= 0.8
