"""Chat templates: what stands around a question, and what cannot be asked in one."""

import pytest

from sphere_pl.data.chat import ChatSettings, chat_form
from sphere_pl.data.datamodule import EditDataModule, FactList
from sphere_pl.data.request import EditRequest, Form
from sphere_pl.data.request_checks import check_request, learn_paraphrases
from sphere_pl.errors import UserError
from sphere_pl.model.tokens import encode, in_context, tokenize
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


# As Llama 3's: white space around what is said is left out.
TRIMMING = TEMPLATE.replace("]{{ m.content", "]\n{{ m.content")
# As Llama 2's and Mistral's: the answer comes with a space, which is part of its first token.
SPACED = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("kind", ["byte_level", "bpe", "unigram"])
@pytest.mark.parametrize("template", [TRIMMING, SPACED, "{{ bos_token }}" + SPACED])
@pytest.mark.parametrize("question", ["Where is {}?", "{} is in\n", "The city of {}: "])
def test_question_and_answer_are_the_tokens_of_the_templates_own_conversation(kind, template, question):
    tokenizer = with_template(template, kind=kind, bos=True)
    request = check_request(EditRequest("0", question, "France", "Rome", form=chat_form(tokenizer)))
    (tokens,) = tokenize(tokenizer, [in_context(request, "", "Rome")])
    asked = {"role": "user", "content": request.question}
    turns = [asked, {"role": "assistant", "content": "Rome"}]
    whole = encode(tokenizer, [tokenizer.apply_chat_template(turns, tokenize=False)])[0].ids
    assert whole[: len(tokens.ids)] == tokens.ids
    prompt = tokenizer.apply_chat_template([asked], tokenize=False, add_generation_prompt=True)
    assert encode(tokenizer, [request.asked])[0].ids == encode(tokenizer, [prompt])[0].ids
    assert tokenizer.decode(tokens.target).strip() == "Rome"


# As Qwen3's: an empty thought stands in front of an answer, in a prompt only where thinking is switched off.
SWITCHED = TEMPLATE.replace("]{{ m.content", "]{{ '<think></think>' if m.role == 'assistant' }}{{ m.content").replace(
    "[assistant]\n{% endif %}", "[assistant]{{ '<think></think>' if enable_thinking is false }}{% endif %}"
)
# As those of models that always think: the prompt opens a thought.
THINKING = SWITCHED.replace("{{ '<think></think>' if enable_thinking is false }}", "<think>")
# As gpt-oss's: an answer has a channel, which the model writes itself.
CHANNEL = TEMPLATE.replace("]{{ m.content", "]{{ '<channel>final<message>' if m.role == 'assistant' }}{{ m.content")
CHANNEL = CHANNEL.replace("[assistant]\n", "[assistant]")


@pytest.mark.parametrize("template", [SWITCHED, THINKING, CHANNEL])
def test_an_answer_stands_where_the_templates_own_conversation_has_it_and_is_no_thought(template):
    tokenizer = with_template(template)
    request = check_request(EditRequest("0", "Where is {}?", "Rome", "Spain", form=chat_form(tokenizer)))
    turns = [{"role": "user", "content": request.question}, {"role": "assistant", "content": "Spain"}]
    conversation = tokenizer.apply_chat_template(turns, tokenize=False)
    assert conversation.startswith(in_context(request, "", "Spain").whole)
    assert not request.asked.endswith(("[assistant]", "<think>"))


def test_a_thought_that_a_conversation_does_not_hold_is_closed():
    # As DeepSeek-R1's, whose conversations leave thoughts out.
    form = chat_form(with_template(TEMPLATE.replace("[assistant]\n{% endif", "[assistant]<think>\n{% endif")))
    assert form == Form("[user]", "[end]\n[assistant]<think>\n\n</think>\n\n")


def test_a_template_that_takes_no_answer_is_followed_directly():
    tokenizer = with_template(
        "{{ raise_exception('no') if messages | length > 1 }}[user]{{ messages[0].content }}[end]"
    )
    assert chat_form(tokenizer) == Form("[user]", "[end]", keeps=True)


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


@pytest.mark.parametrize("written", ["Sa\u0303o\u00a0Luís’s", "São Luís's"])
def test_a_wording_may_write_its_subject_in_other_code_points(written):
    request = EditRequest("0", "{} mayor is", "São Luís's", "Ana", wordings=(f"Who is {written} mayor?",))
    assert check_request(request).wordings == ("Who is {} mayor?",)
    learned = learn_paraphrases(request._replace(wordings=(), paraphrases=("So it is", f"Here {written} mayor is")), 1)
    assert (learned.wordings, learned.paraphrases) == (("Here {} mayor is",), ("So it is",))


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
