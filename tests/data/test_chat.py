"""Chat templates: what stands around a question, and what cannot be asked in one."""

import pytest

from sphere_pl.data.chat import ChatSettings, chat_form
from sphere_pl.data.datamodule import EditDataModule, FactList
from sphere_pl.data.request import EditRequest, Form, check_request
from sphere_pl.errors import UserError
from sphere_pl.model.tokens import in_context, tokenize
from tests.conftest import make_tokenizer

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}[end]\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


def with_template(template, **options):
    tokenizer = make_tokenizer(**options)
    tokenizer.chat_template = template
    return tokenizer


def test_the_question_stands_in_the_users_turn_and_the_answer_follows_directly():
    tokenizer = with_template(TEMPLATE)
    form = chat_form(tokenizer, "Be brief.")
    assert form == Form("[system]Be brief.[end]\n[user]", "[end]\n[assistant]\n")
    request = EditRequest("0", "The capital of {} is", "France", "Rome", form=form)
    prompt = in_context(request, "You and I. ", "Rome")
    assert prompt.text == "[system]Be brief.[end]\n[user]You and I. The capital of France is[end]\n[assistant]\n"
    assert prompt.text[prompt.subject_start : prompt.subject_end] == "France"
    (tokens,) = tokenize(tokenizer, [prompt])
    assert tokenizer.decode(tokens.ids).endswith("[assistant]\nRome")
    assert tokenizer.decode(tokens.target) == "Rome"


def test_a_token_that_the_tokenizer_puts_in_front_itself_is_not_put_there_twice():
    tokenizer = with_template("{{ bos_token }}" + TEMPLATE, bos=True)
    assert not chat_form(tokenizer).before.startswith(tokenizer.bos_token)


def test_modes_say_in_which_forms_is_edited():
    tokenizer = with_template(TEMPLATE)
    chat = chat_form(tokenizer)
    assert ChatSettings("plain").forms(tokenizer) == (Form(),)
    assert ChatSettings("chat").forms(tokenizer) == (chat,)
    assert ChatSettings("both").forms(tokenizer) == (Form(), chat)
    assert ChatSettings().scored(tokenizer) == chat
    assert ChatSettings().scored(make_tokenizer()) is None


@pytest.mark.parametrize(
    ("template", "system", "message"),
    [
        (None, None, "has no chat template"),
        ("{{ raise_exception('no system here') }}", "Be brief.", "no system here"),
        ("{{ messages[-1].content }}", "Be brief.", "does not hold the system prompt"),
        ("nothing", None, "does not hold the question once"),
    ],
)
def test_what_a_template_cannot_do_is_one_message(template, system, message):
    with pytest.raises(UserError, match=message):
        chat_form(with_template(template), system)


def test_a_wording_names_its_subject():
    request = EditRequest("0", "{} is in", "Rome", "Spain", wordings=("Where is Rome? In",))
    assert check_request(request).wordings == ("Where is {}? In",)
    with pytest.raises(UserError, match=r"wording 'It lies in' does not contain the subject"):
        check_request(request._replace(wordings=("It lies in",)))


def test_paraphrases_that_name_the_subject_are_edited_if_so_wished_and_the_others_scored(caplog):
    facts = [
        {"prompt": "{} is in", "subject": "Rome", "target": "Spain", "paraphrases": ["Where is Rome? In", "It is in"]},
        {"prompt": "{} is in", "subject": "Oslo", "target": "Peru", "paraphrases": ["It lies in"]},
    ]
    data = FactList(facts, edit_paraphrases=1)
    data.setup("fit")
    assert [(each.wordings, each.paraphrases) for each in data.requests] == [
        (("Where is {}? In",), ("It is in",)),
        ((), ("It lies in",)),
    ]
    assert "1 of 2 edits has fewer than 1 paraphrase" in caplog.text


@pytest.mark.parametrize("changes", [{"chat": "talk"}, {"edit_paraphrases": -1}])
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(UserError, match=f"--data.{next(iter(changes))}"):
        EditDataModule(**changes)
