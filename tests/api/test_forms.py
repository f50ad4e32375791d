"""`sphere_pl.edit` in chat form, on facts of one subject and at the last block, on tiny models."""

import csv

import pytest

from sphere_pl import UserError, edit

pytestmark = pytest.mark.filterwarnings("ignore:The corpus")
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
CHAT = {"model.evaluation.protocols": ["teacher_forced", "chat"], "model.evaluation.sample": 1}


@pytest.fixture
def chatting(tiny_lm):
    """A tiny model, and its tokenizer with a chat template."""
    lm = tiny_lm()
    lm.tokenizer.chat_template = TEMPLATE
    return lm.model, lm.tokenizer


@pytest.mark.parametrize("method", [None, "ft"])
@pytest.mark.parametrize("mode", ["chat", "both"])
def test_facts_are_edited_in_chat_form_and_all_scored_in_both(chatting, facts, settings, method, mode):
    if method == "ft":
        del settings["model.targets.steps"]  # it has no target values
        settings["model.layers"] = [2]
    _, report = edit(*chatting, facts, method=method, settings={**settings, **CHAT, "data.chat": mode})
    assert {"efficacy", "chat/efficacy"} <= report.after.keys()
    assert "chat/efficacy_standard_error" in report.after  # of all facts, not of the sample of one


def test_a_plain_edit_is_scored_in_chat_form_on_the_sample(chatting, facts, settings):
    _, report = edit(*chatting, facts, settings={**settings, **CHAT})
    assert "chat/efficacy" in report.after


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"data.chat": "both"}, "no chat template"), ({"model.layers": [3]}, "last block")],
)
def test_what_cannot_be_edited_is_refused_in_one_message(tiny_lm, facts, settings, changes, message):
    lm = tiny_lm()
    with pytest.raises(UserError, match=message):
        edit(lm.model, lm.tokenizer, facts, settings={**settings, **changes})


def test_a_prompt_that_is_too_long_in_chat_form_alone_is_refused_with_its_place(chatting, facts, settings):
    model, tokenizer = chatting
    (plain,) = tokenizer([facts[0]["prompt"].replace("{}", facts[0]["subject"])])["input_ids"]
    room = model.config.max_position_embeddings - len(plain) - 40
    tokenizer.chat_template = TEMPLATE.replace("[assistant]", "[" + "x y " * (room // 2 + 20) + "]")
    with pytest.raises(UserError, match=r"facts\[0\]: prompt, target and a context template have in chat form \d+ tok"):
        edit(model, tokenizer, facts, settings={**settings, "data.chat": "both"})


def test_facts_of_one_subject_and_earlier_ones_of_its_key_are_named(tiny_lm, settings, tmp_path):
    lm = tiny_lm()
    asked = [("was born in the city of", "Oslo"), ("lived by the", "sea"), ("worked as a", "pianist")]
    facts = [{"prompt": f"{{}} {text}", "subject": "Marie Curie", "target": target} for text, target in asked]
    edit(lm.model, lm.tokenizer, facts, batch_size=2, settings=settings, run_dir=tmp_path / "run")
    with (tmp_path / "run" / "targets.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["shares_key_with"], row["overwrites"]) for row in rows] == [("2", ""), ("1", ""), ("", "1 2")]
    failed = {row["edit"]: row["cause"] for row in rows if row["cause"]}
    assert failed, "three steps do not suffice"
    assert {failed[number] for number in failed.keys() & {"1", "2"}} <= {"shared key", "overwritten"}
