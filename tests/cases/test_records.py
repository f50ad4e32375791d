"""Reports of others about records and tokenizers; each test names those whose kind it holds.

EE is EasyEdit, HF transformers.
"""

import json
import warnings

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sphere_pl.data.datamodule import EditDataModule
from sphere_pl.data.formats.jsonl import write_jsonl
from sphere_pl.data.request import EditRequest
from sphere_pl.data.request_checks import check_request
from sphere_pl.editing.checks import check_subjects
from sphere_pl.errors import UserError
from sphere_pl.evaluation.answers import answer_requests
from sphere_pl.evaluation.metrics.texts import ngram_entropy
from sphere_pl.evaluation.protocols import generation_scores, probability_scores
from sphere_pl.evaluation.scoring import perplexity
from sphere_pl.methods import FT, MEMIT, LocFTBF, UltraEdit
from sphere_pl.model.generation import complete
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.token_checks import check_target
from sphere_pl.model.tokens import encode, in_context, tokenize
from sphere_pl.text.matching import begins_with
from tests.conftest import TEXT, make_tokenizer

RECORD = {"prompt": "{} was founded in", "subject": "IBM", "target": "1899"}
CHAT = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is the capital of {}?<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@pytest.fixture
def read(tmp_path):
    """Read records from a file whose format nobody names."""

    def run(*records, name="facts.jsonl", text=None, **settings):
        path = tmp_path / name
        path.write_text(text or "\n".join(map(json.dumps, records)), encoding="utf-8")
        data = EditDataModule(path=str(path), **settings)
        data.setup("fit")
        return data.requests

    return run


def test_a_free_answer_without_spaces_is_matched_by_its_first_characters():  # EE #163, #165
    assert begins_with("柏林，德国的首都", ["柏林"])
    assert begins_with("กรุงเทพเป็นเมืองหลวง", ["กรุงเทพ"])
    assert begins_with("1911年成立", ["1911"])
    assert not begins_with("在柏林", ["柏林"])
    assert not begins_with("Romeo", ["Rome"])
    assert ngram_entropy("今天天气很好") > ngram_entropy("好好好好好好") == 0.0


def test_white_space_and_templates_that_a_user_types_stay_as_they_are(read):  # EE #608, #374
    (request,) = read({"prompt": CHAT, "subject": "France", "target": "Oslo"})
    assert request.question.endswith("assistant\n")
    prompt = in_context(request, "So it is. ", request.target_new)
    assert prompt.whole == CHAT.replace("{}", "France") + "Oslo"
    assert prompt.text[prompt.subject_start : prompt.subject_end] == "France"
    plain = in_context(EditRequest("0", "{} is in", "Rome", "Spain"), "So it is. ")
    assert plain.text.startswith("So it is. ")


def test_a_context_of_another_script_does_not_change_how_the_target_follows():
    request = EditRequest("0", "{}建成于", "故宫", "1420")
    for context in ("", "Therefore we all went to see the old town of it. "):
        assert in_context(request, context, "1420").whole == f"{context}故宫建成于1420"


ENDINGS = {
    "BOS": "<|end|> $A",
    "EOS": "$A <|end|>",
    "both": "<|end|> $A <|end|>",
}


def with_ending(lm, kind):
    """The model with a tokenizer that adds tokens."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=ENDINGS[kind], special_tokens=[("<|end|>", 0)]
    )
    return LanguageModel(lm.model, tokenizer)


@pytest.mark.parametrize(("adds", "like"), [("EOS", None), ("both", "BOS")])
def test_tokens_that_a_tokenizer_adds_at_the_end_are_no_part_of_anything(tiny_lm, requests, adds, like):
    # HF #30947, #22794
    plain = tiny_lm() if like is None else with_ending(tiny_lm(), like)
    adding = with_ending(tiny_lm(), adds)
    requests = [each._replace(neighbors=("Berlin is a city in",), neighbor_answers=("Germany",)) for each in requests]
    assert answer_requests(adding, requests) == answer_requests(plain, requests)
    assert probability_scores(adding, requests) == probability_scores(plain, requests)
    assert generation_scores(adding, requests) == generation_scores(plain, requests)
    assert complete(adding, ["The capital of"], 5) == complete(plain, ["The capital of"], 5)
    assert perplexity(adding, TEXT) == perplexity(plain, TEXT)


def test_a_text_that_begins_with_the_mark_of_the_beginning_gets_no_second_one():
    tokenizer = make_tokenizer(bos=True)
    assert encode(tokenizer, ["<|end|>Rome"])[0].ids == encode(tokenizer, ["Rome"])[0].ids


def test_tokens_that_a_user_has_added_swallow_no_white_space_of_the_target():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("<ask>", rstrip=True), AddedToken("Zzyzx", lstrip=True)])
    for prompt, target in (("{} now <ask>", "Paris"), ("{} lies in", "Zzyzx"), ("{} is <ask> ", "Zzyzx")):
        request = check_request(EditRequest("0", prompt, "Rome", target))
        (tokens,) = tokenize(tokenizer, [in_context(request, "", target)])
        assert tokenizer.decode(tokens.target).strip() == target
        assert tokens.ids[: tokens.target_start] == encode(tokenizer, [request.question])[0].ids


def test_a_merge_over_the_border_does_not_change_what_is_asked():
    tokenizer = make_tokenizer(text="首都是柏林 是柏 首都是柏林 是柏\n" * 20)
    assert any("是柏" in tokenizer.decode([token]) for token in tokenizer("首都是柏林")["input_ids"])
    request = EditRequest("0", "{}首都是", "德国", "柏林")
    (tokens,) = tokenize(tokenizer, [in_context(request, "", "柏林")])
    assert tokens.ids[: tokens.target_start] == encode(tokenizer, ["德国首都是"])[0].ids
    assert tokenizer.decode(tokens.target) == "柏林"


def test_a_target_that_is_half_a_character_is_edited_as_such_or_refused():
    tokenizer = make_tokenizer()
    request = check_request(EditRequest("0", "{} wrote Zoe", "Anna", "\u0308"))
    (tokens,) = tokenize(tokenizer, [in_context(request, "", request.target_new)])
    assert tokenizer.decode(tokens.target) == "\u0308"
    unknown = make_tokenizer("unigram")
    whole = json.loads(unknown.backend_tokenizer.to_str())
    whole["model"]["byte_fallback"] = False
    poor = type(unknown)(tokenizer_object=unknown.backend_tokenizer.from_str(json.dumps(whole)), unk_token="<unk>")
    with pytest.raises(UserError, match="no token for part of the target '柏林' and puts <unk> in its place"):
        check_target(poor, EditRequest("0", "{} is", "Rome", "柏林"))


def test_a_target_of_special_tokens_alone_is_refused():
    with pytest.raises(UserError, match="is nothing but special tokens, which no reader gets to see"):
        check_target(make_tokenizer(), EditRequest("0", "{} is", "Rome", "<|end|>"))
    check_target(make_tokenizer(), EditRequest("0", "{} is", "Rome", "Paris<|end|>"))


@pytest.mark.parametrize("target", ["\u200b", "\u00ad \u2060"])
def test_a_target_or_subject_of_which_nothing_can_be_seen_is_refused(read, target):
    with pytest.raises(UserError, match=r"line 1: target_new is .*, of which nothing can be seen"):
        read({**RECORD, "target": target})
    with pytest.raises(UserError, match=r"line 1: the subject is .*, of which nothing can be seen"):
        read({**RECORD, "subject": target, "prompt": "{} is in"})


def test_a_target_that_is_true_already_is_left_out_of_scores_by_probability(tiny_lm):  # EE #390, #668
    true = EditRequest("0", "The capital of {} is", "France", "Paris", "paris")
    assert "efficacy" not in probability_scores(tiny_lm(), [true])
    assert "efficacy" in probability_scores(tiny_lm(), [true, true._replace(target_new="Berlin")])


def test_columns_of_other_editors_are_known_and_others_are_mapped(read):  # hiyouga/FastEdit
    (request,) = read(name="a.json", text=json.dumps([{**RECORD, "queries": ["IBM began in"]}]))
    assert request.paraphrases == ("IBM began in",)
    pararel = {
        "relation": "P103", "relation_prefix": "The native language of", "relation_suffix": " is", "subject": "Jane",
        "prompt": "The native language of Jane is", "target_false": " Korean", "target_true": " French",
    }  # fmt: skip
    (request,) = read(pararel)
    assert (request.target_new, request.target_true.strip()) == ("Korean", "French")
    easyedit = {"prompts": ["Rome is in", "Oslo is in"], "subject": ["Rome", "Oslo"], "target_new": ["Spain", "Peru"]}
    assert [each.target_new for each in read(name="b.json", text=json.dumps(easyedit))] == ["Spain", "Peru"]
    other = {"stem": "The capital of {} is", "who": {"name": "France"}, "says": "Lyon", "colour": "red"}
    (request,) = read(other, columns={"stem": "prompt", "who.name": "subject", "says": "target"})
    assert request.question == "The capital of France is"
    with pytest.raises(UserError, match=r"names 'sayz', which no record has. Did you mean says\? The columns are stem"):
        read(other, columns={"stem": "prompt", "who.name": "subject", "sayz": "target", "says": "aliases"})
    with pytest.raises(UserError, match=r"'colour' is unknown.*--data.columns '\{colour: paraphrases\}'"):
        read({**RECORD, "colour": "red"})


@pytest.mark.parametrize(("value", "text"), [(1911, "1911"), (12.50, "12.5"), (-3, "-3")])
def test_numbers_are_answers(read, value, text):  # datasets #7322
    (request,) = read({**RECORD, "target": value, "aliases": [value], "neighbors": "a", "neighbor_answers": [value]})
    assert (request.target_new, request.aliases, request.neighbor_answers) == (text, (text,), (text,))


def test_a_number_keeps_its_digits_and_nan_is_none(read):  # datasets #7322
    (request,) = read(text='{"prompt": "{} costs", "subject": "It", "target": 12.50}')
    assert request.target_new == "12.50"
    with pytest.raises(UserError, match="line 1: the field 'target' is nan, which is no text"):
        read(text='{"prompt": "{} costs", "subject": "It", "target": NaN}')


def test_values_of_other_shapes_are_read_where_it_is_plain_what_they_mean(read):  # EE #538, #551
    (request,) = read({**RECORD, "ground_truth": ["1911"], "aliases": [["the year 1899"], ["1899 AD"]]})
    assert (request.target_true, request.aliases) == ("1911", ("the year 1899", "1899 AD"))
    (request,) = read({"prompt": "{} is in", "subject": "Rome", "answers": ["Spain", "Iberia"]})
    assert (request.target_new, request.aliases) == ("Spain", ("Iberia",))
    chinese = {
        "prompt": "《静夜思》的作者是", "target_old": "李白", "target_new": "杜甫", "rephrase": ["谁写了《静夜思》？"],
        "portability": [{"prompt": "诗人生活在哪个朝代？", "answer": "唐朝"}],
        "locality": [{"prompt": "《春晓》的作者是", "answer": "孟浩然"}],
    }  # fmt: skip
    (request,) = read(name="cknowedit.json", text=json.dumps([chinese]))
    assert (request.subject, request.target_true, request.neighbor_answers) == ("", "李白", ("孟浩然",))
    assert request.portability_answers == (("唐朝",),)
    with pytest.raises(UserError, match="probe is empty"):
        read({**RECORD, "neighbors": [""]})


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The largest city near São Paulo is", "Sa\u0303o Paulo"),
        ("Near Sa\u0303o Paulo is", "São Paulo"),
        ("The Boeing\u00a0747 was made by", "Boeing 747"),
        ("The ﬁrst one is", "first"),
        ("O’Brien’s town is", "O'Brien"),
        ("Where is the “Spider\u2013Man” of Rome?", '"Spider-Man"'),
        ("The Spider\u2011Man of Rome is", "Spider-Man"),
        ("The Côte d'Ivoire is", "Co\u0302te d’Ivoire"),
        ("한국의 수도는", "\u1112\u1161\u11ab\u1100\u116e\u11a8"),
    ],
)
def test_a_subject_in_other_code_points_is_found_and_the_prompt_stays(read, prompt, subject):  # ReMaKE #1
    (request,) = read({"prompt": prompt, "subject": subject, "target": "Rome"})
    assert request.question == prompt
    start, end = request.subject_span
    assert prompt[start:end] == request.subject != subject


def test_a_subject_that_only_looks_alike_is_named_by_its_code_points(read):  # ReMaKE #1
    with pytest.raises(UserError, match=r"signs that cannot be seen \(U\+200B\)"):
        read({"prompt": "The Boeing\u200b747 flies", "subject": "Boeing 747", "target": "Rome"})
    with pytest.raises(UserError, match="It holds 'norway': write the subject as the prompt does"):
        read({"prompt": "The capital of norway is", "subject": "Norway", "target": "Rome"})


def test_a_file_needs_no_name_unless_two_readers_fit(read):
    flat = {
        "case_id": 0, "prompt": "Rome is in", "subject": "Rome", "target_new": "Spain", "ground_truth": "Italy",
        "rephrase_prompt": "It rained. Rome is in", "locality_prompt": "Oslo is in", "locality_ground_truth": "Norway",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"fits several formats.*--data.name=jsonl takes.*--data.name=easyedit sorts"):
        read(flat)
    (request,) = read({"subject": "Rome", "update": "Where is Rome?", "ans": "Spain"})
    assert request.question == "Where is Rome?"


def test_records_without_a_subject_are_for_methods_that_need_none(read):  # EE #414
    bare = read({"prompt": "The sky at noon is {blue} or", "target": "green"})
    assert in_context(bare[0], "So. ", "green").text == "So. The sky at noon is {blue} or"
    for method in (FT(), LocFTBF(), UltraEdit()):
        check_subjects(method, bare)
    with pytest.raises(UserError, match=r"line 1 has no subject \(1 of 1 edits\): MEMIT edits at"):
        check_subjects(MEMIT(1.0), bare)
    with pytest.raises(UserError, match="the field 'subject' is missing"):
        read({"prompt": "The capital of {} is", "target": "Rome"})


def test_two_contradicting_edits_in_one_batch_are_asked_about(read, tmp_path):
    records = [{**RECORD, "target": "1899"}, {**RECORD, "target": "1901"}]
    read(*records)
    with pytest.raises(UserError, match=r"of one batch contradict each other: .*line 1 says .*line 2 says .*1901"):
        _loader(tmp_path)
    for settings in ({"batch_size": 1}, {"conflicts": "report"}, {"conflicts": "keep_last"}):
        _loader(tmp_path, **settings)


def _loader(folder, **settings):
    data = EditDataModule(path=str(folder / "facts.jsonl"), **settings)
    data.setup("fit")
    return data.train_dataloader()


def test_a_joiner_says_what_stands_between_prompt_and_target(read):
    (request,) = read({"prompt": "{}的首都是", "subject": "法国", "target": "里昂", "joiner": " "})
    assert in_context(request, "", request.target_new).whole == "法国的首都是 里昂"
    (request,) = read({**RECORD, "joiner": ""})
    assert in_context(request, "", "1899").whole == "IBM was founded in1899"
    (request,) = read(name="a.csv", text='prompt,subject,target,joiner\nA {} is,B,c,"""\\n"""\n')
    assert request.joiner == "\n"
    with pytest.raises(UserError, match=r"the joiner is ': '. It is what stands between prompt and target"):
        read({**RECORD, "joiner": ": "})


def test_a_data_set_of_the_hub_is_read_by_its_columns(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{"ask": "The capital of {} is", "who": "France", "say": "Lyon", "score": 1}])
    columns = {"ask": "prompt", "who": "subject", "say": "target"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        DatasetDict({"test": rows}).save_to_disk(str(tmp_path / "saved"))
        rows.to_parquet(str(tmp_path / "facts.parquet"))
        data = EditDataModule("hf", str(tmp_path / "saved"), split="test", columns=columns)
        data.setup("fit")
        with pytest.raises(UserError, match=r"'train' is no split of .*saved. It has test"):
            EditDataModule("hf", str(tmp_path / "saved"), columns=columns).setup("fit")
    assert [request.question for request in data.requests] == ["The capital of France is"]
    packed = EditDataModule(path=str(tmp_path / "facts.parquet"), columns=columns)
    packed.setup("fit")
    assert packed.requests[0]._replace(source="") == data.requests[0]._replace(source="")


BRACES = [
    ("If \\frac{a}{b} is half of X, then X is", "X"),
    ("$\\mathbf{X}^{2}$ is", "X"),
    ('{"name": "Anna", "instrument":', "Anna"),
    ("def f(x):\n    return {x: Rome}  # Rome is in", "Rome"),
    ("void main() { /* Rome is in", "Rome"),
    ("The %s of {0} and {subject} in Rome is", "Rome"),
]


@pytest.mark.parametrize(("prompt", "subject"), BRACES)
def test_braces_in_a_prompt_that_names_its_subject_are_text(read, prompt, subject):
    record = {"prompt": prompt, "subject": subject, "target": "so", "wordings": [f"{{x}} {prompt}"]}
    (request,) = read(record)
    start, end = request.subject_span
    assert (request.question, request.question[start:end]) == (prompt, subject)
    assert start == prompt.rindex(subject)
    assert [each.replace("{}", subject, 1) for each in request.wordings] == [f"{{x}} {prompt}"]
    (again,) = read(write_jsonl(request))
    assert again == request
    tokenizer = make_tokenizer()
    (tokens,) = tokenize(tokenizer, [in_context(request, "So it is. ", "so")])
    assert tokenizer.decode(tokens.ids[: tokens.subject_last + 1]).startswith(f"So it is. {prompt[:end]}")


@pytest.mark.parametrize(("prompt", "subject"), BRACES)
def test_braces_are_text_in_every_format_that_names_its_subject(read, prompt, subject):
    question = {"zsre": "src", "wikibigedit": "update"}
    for name, record in {
        "zsre": {"answers": ["so"], "rephrase": "x", "loc": "nq question: x", "loc_ans": "y"},
        "wikibigedit": {"ans": "so"},
        "knowedit": {"target_new": "so", "locality": {}},
        "uniedit": {},
    }.items():
        fields = {question.get(name, "prompt"): prompt, "subject": subject, **record}
        (request,) = read({"edit": {**fields, "target": "so"}} if name == "uniedit" else fields)
        assert request.question == prompt
        assert request.prompt.count("{}") == 1


def test_stray_braces_beside_a_place_for_the_subject_are_refused_with_what_to_do(read):
    with pytest.raises(UserError, match=r"stray braces.*write the subject itself in the place of '\{\}'"):
        read({"prompt": "\\frac{a}{b} of {} is", "subject": "X", "target": "so"})


FEW = "The capital of France is Paris and Rome is big abc"


def poor_tokenizer(kind):
    """One that knows the letters of `FEW` and no bytes: it leaves out what it does not know, or has a sign for it."""
    if kind == "words":
        inner = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(special_tokens=["[UNK]"], show_progress=False)
    else:
        inner = Tokenizer(models.BPE(unk_token=None if kind == "leaves out" else "<unk>"))
        inner.pre_tokenizer = pre_tokenizers.Metaspace()
        special = [] if kind == "leaves out" else ["<unk>"]
        trainer = trainers.BpeTrainer(vocab_size=80, special_tokens=special, show_progress=False)
    inner.train_from_iterator([FEW], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner)  # it does not say which token is for what it does not know


UNREAD = [("Rome", "Łódź", "target"), ("Rome", "Paris 東京", "target"), ("東京", "Paris", "subject")]


@pytest.mark.parametrize("kind", ["leaves out", "sign", "words"])
@pytest.mark.parametrize(("subject", "target", "part"), UNREAD)
def test_what_a_tokenizer_cannot_read_of_subject_or_target_is_refused(kind, subject, target, part):
    tokenizer = poor_tokenizer(kind)
    check_target(tokenizer, EditRequest("0", "The capital of {} is", "Rome", "Paris"))
    lost = {"leaves out": "leaves .* out of the", "sign": "puts <unk> in", "words": r"puts \[UNK\] in"}[kind]
    with pytest.raises(UserError, match=rf"case 0: the tokenizer .*{lost}") as error:
        check_target(tokenizer, EditRequest("0", "The capital of {} is", subject, target))
    assert f"the {part} " in str(error.value)


def test_a_subject_that_is_read_in_part_is_refused_where_the_rest_is_left_out():
    partly = EditRequest("0", "{} is", "Rome東", "Paris")
    with pytest.raises(UserError, match="leaves '東' out of the subject 'Rome東'"):
        check_target(poor_tokenizer("leaves out"), partly)
    check_target(poor_tokenizer("sign"), partly)  # what it is edited at depends on what is known of it


@pytest.mark.parametrize(
    "text", ["\u1112\u1161\u11ab\u1100\u116e\u11a8", "Sa\u0303o", "\uff8a\uff9e", "ﷺ", "ƛ\u0313", "กำ"]
)
def test_what_a_tokenizer_composes_is_not_left_out(text):
    tokenizer = make_tokenizer()
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        tokenizer.backend_tokenizer.normalizer = getattr(normalizers, form)()
        check_target(tokenizer, EditRequest("0", "{} is", text, text))
        check_target(tokenizer, EditRequest("0", "So {}", f"{text} {text}", f"a {text} b"))
