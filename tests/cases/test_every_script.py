"""Records of twelve scripts on four tokenizers: targets survive their tokens, and right answers count as right."""

import random
from itertools import product

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from sphere_pl.data.formats.jsonl import read_jsonl
from sphere_pl.data.records import Record
from sphere_pl.data.request import EditRequest
from sphere_pl.data.request_checks import check_request
from sphere_pl.errors import UserError
from sphere_pl.evaluation.answers import EditingMetrics, answer_requests, prompts
from sphere_pl.evaluation.protocols import generation_scores, probability_scores
from sphere_pl.model.token_checks import check_target
from sphere_pl.model.tokens import encode, in_context, request_prompt, tokenize
from sphere_pl.text.joining import asked
from tests.cases.scripted import ScriptedModel
from tests.conftest import make_tokenizer

# Script: three questions about a subject, three subjects, four answers.
# ruff: noqa: E501 (wide characters count twice)
SCRIPTS = {
    "Latin": (["The capital of {} is", "Where is {}?", 'They call {} "'], ["Norway", "São Tomé", "Côte d'Ivoire"],
              ["Bergen", "New York", "Łódź", "1911"]),
    "Cyrillic": (["Столица страны {} —", "Где находится {}?", "{} расположена в городе"], ["Норвегия", "Япония", "Египет"],
                 ["Москва", "Санкт-Петербург", "Киев", "1703"]),
    "Greek": (["Η πρωτεύουσα της {} είναι", "Πού είναι {};", "{} βρίσκεται στην"], ["Ελλάδα", "Ιταλία", "Κύπρος"],
              ["Αθήνα", "Θεσσαλονίκη", "Ρώμη", "Πάτρα"]),
    "Arabic": (["عاصمة {} هي", "أين تقع {}؟", "تقع {} في"], ["مصر", "المغرب", "العراق"],
               ["القاهرة", "تل أبيب", "بغداد", "١٩١١"]),
    "Hebrew": (["הבירה של {} היא", "איפה נמצאת {}?", "{} היא עיר ב־"], ["ישראל", "צרפת", "יפן"],
               ["ירושלים", "תל אביב", "חיפה", "פריז"]),
    "Devanagari": (["{} की राजधानी है", "{} कहाँ है?", "{} यहाँ है:"], ["भारत", "नेपाल", "जापान"],
                   ["दिल्ली", "काठमांडू", "मुंबई", "टोक्यो"]),
    "Hangul": (["{}의 수도는", "{}은 어디에 있습니까?", "{}의 도시:"], ["프랑스", "한국", "일본"], ["파리", "서울", "부산", "도쿄"]),
    "Han": (["{}的首都是", "{}在哪里？", "《{}》的作者是“"], ["埃及", "挪威", "静夜思"], ["柏林", "罗马", "李白", "1911年"]),
    "Kana": (["{}の首都は", "{}はどこですか？", "{}の中心は「"], ["日本", "フランス", "カナダ"], ["東京", "パリ", "ローマ", "おおさか"]),
    "Thai": (["เมืองหลวงของ{}คือ", "{}อยู่ที่ไหน", "{}ตั้งอยู่ใน"], ["ไทย", "ญี่ปุ่น", "ลาว"], ["กรุงเทพ", "โตเกียว", "ปารีส", "เชียงใหม่"]),
    "Khmer": (["រាជធានីនៃ{}គឺ", "{}នៅទីណា", "{}ស្ថិតនៅ"], ["កម្ពុជា", "ថៃ", "ជប៉ុន"], ["ភ្នំពេញ", "បាងកក", "តូក្យូ", "សៀមរាប"]),
    "Myanmar": (["{}၏မြို့တော်မှာ", "{}ဘယ်မှာလဲ", "{}တည်ရှိရာ"], ["မြန်မာ", "ထိုင်း", "ဂျပန်"],
                ["နေပြည်တော်", "ဘန်ကောက်", "တိုကျို", "ရန်ကုန်"]),
}  # fmt: skip
TOKENIZERS = ["bytes", "bytes with BOS", "unigram", "appends"]
WRONG = "zz"  # answers in no script what any record asks for


def _corpus():
    found = []
    for script, (templates, subjects, answers) in SCRIPTS.items():
        for number, (template, subject, place) in enumerate(product(templates, subjects, range(len(answers)))):
            new, true, other = (answers[(place + step) % len(answers)] for step in (0, 1, 2))
            neighbor = template.replace("{}", subjects[(subjects.index(subject) + 1) % len(subjects)])
            request = EditRequest(
                f"{script}-{number}", template, subject, new, true,
                paraphrases=(f"{template.replace('{}', subject)}\n",), neighbors=(neighbor,), neighbor_answers=(other,),
            )  # fmt: skip
            found.append(check_request(request))
    return found


CORPUS = _corpus()


def tokenizer_of(kind):
    if kind != "appends":
        return make_tokenizer("unigram" if kind == "unigram" else "byte_level", bos=kind == "bytes with BOS")
    plain = make_tokenizer()
    inner = plain.backend_tokenizer
    inner.post_processor = processors.TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", 0)])
    assert inner.token_to_id("<|end|>") == 0
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<|end|>", eos_token="<|end|>")


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return tokenizer_of(request.param)


def test_the_corpus_is_large_enough():
    assert len(CORPUS) >= 300
    assert len(SCRIPTS) == 12


def test_a_target_survives_its_tokens_and_follows_the_tokens_that_are_asked_with(tokenizer):
    for request, tokens in zip(
        CORPUS, tokenize(tokenizer, [in_context(r, "", r.target_new) for r in CORPUS]), strict=True
    ):
        assert tokenizer.decode(tokens.target).removeprefix(" ") == request.target_new
        assert tokens.ids[: tokens.target_start] == encode(tokenizer, [asked(request.question)])[0].ids
        assert tokens.ids[-1] != tokenizer.eos_token_id
        check_target(tokenizer, request)
        start, end = request.subject_span
        subject = tokenizer.decode(tokens.ids[tokens.subject_first : tokens.subject_last + 1])
        assert request.question[start:end] in subject or "\ufffd" in subject


def _distinct():
    """Records whose prompts have one wanted answer each."""
    kept, seen = [], set()
    for request in CORPUS:
        texts = {request.question, *request.paraphrases}
        if not texts & seen:
            kept.append(request._replace(neighbors=(), neighbor_answers=()))
            seen |= texts
    return kept


def _scores(model, requests):
    metrics = EditingMetrics()
    metrics.update(range(len(requests)), answer_requests(model, requests), {})
    forced = {name: float(value) for name, value in metrics.compute().items() if name != "neighborhood_agreement"}
    by_probability = {name: score.value for name, score in probability_scores(model, requests).items()}
    written = {name: score.value for name, score in generation_scores(model, requests).items()}
    return forced, by_probability, written


def test_right_answers_score_one_and_wrong_ones_zero_in_each_protocol(tokenizer):
    edits = _distinct()
    requests = [
        each._replace(neighbors=(f"Aside: {each.question}",), neighbor_answers=(each.target_true,)) for each in edits
    ]
    wanted = [prompt for request in requests for group in prompts(request) for prompt in group]
    right = ScriptedModel(tokenizer, wanted)
    for scores in _scores(right, requests):
        for name in ("efficacy", "generalization", "specificity"):
            assert scores[name] == 1.0, name
    wrong = ScriptedModel(tokenizer, [prompt._replace(target=WRONG) for prompt in wanted])
    forced, _, written = _scores(wrong, requests)
    for name in ("efficacy", "generalization", "specificity"):
        assert forced[name] == written[name] == 0.0, name
    unedited = [
        request_prompt(request, text, answer)
        for request in requests
        for text, answer in [
            (request.question, request.target_true), (request.paraphrases[0], request.target_true),
            (request.neighbors[0], request.target_new),
        ]
    ]  # fmt: skip
    _, by_probability, _ = _scores(ScriptedModel(tokenizer, unedited), requests)
    for name in ("efficacy", "generalization", "specificity"):
        assert by_probability[name] == 0.0, name


BASES = [
    {"prompt": "The capital of {} is", "subject": "Norway", "target": "Bergen", "aliases": ["Bergen city"]},
    {"prompt": "Where is Rome made?", "subject": "Rome", "target": "Spain", "neighbors": ["Oslo is in"]},
    {"prompt": "埃及的首都是", "subject": "埃及", "target": "柏林", "paraphrases": ["埃及以哪里为首都？"]},
    {"prompt": "<|im_start|>user\nWho is {}?<|im_end|>\n<|im_start|>assistant\n", "subject": "Zoë", "target": "a poet"},
    {"question": "So it is", "answer": "good", "locality": [{"prompt": "And", "answer": "so"}]},
    {"prompt": "भारत की राजधानी", "subject": "भारत", "target": "दिल्ली", "portability": ["Q"]},
]
PIECES = [
    *("", " ", "\n", "\t", "\u00a0", "\u200b", "\u200f", "\u3000", "{}", "{", "}", '"', "“", "<|end|>", "\u0301"),
    *(
        "\ud83d",
        "🍕",
        "é",
        "e\u0301",
        "ﬁ",
        "1911",
        "\0",
        "\ufffd",
        "[",
        "柏",
        "क्",
        "İ",
        "ß",
        "a" * 300,
        "\u2028",
        "</s>",
    ),
]
VALUES = [
    *(None, True, 0, -1, 1911, 12.5, float("nan"), 10**30, "", " "),
    *([], {}, [None], ["x", 3], [["x"]], {"prompt": "x"}),
]


def mutated(rng):
    record = dict(rng.choice(BASES))
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(list(record) or ["prompt"])
        kind = rng.randrange(6)
        value = record.get(name)
        if kind == 0:
            record.pop(name, None)
        elif kind == 1:
            record[name] = rng.choice(VALUES)
        elif kind == 2:
            record[rng.choice(["promt", "_note", "target_new", "joiner", "id", "relation"])] = rng.choice(
                [*VALUES, *PIECES]
            )
        elif isinstance(value, str):
            place = rng.randint(0, len(value))
            cut = rng.randint(place, len(value)) if kind == 3 else place
            record[name] = value[:place] + rng.choice(PIECES) + value[cut:]
    return record


def outcome(record, tokenizer):
    """The request with its tokens, or the message that refuses the record."""
    try:
        (request,) = read_jsonl(Record("edits.jsonl, line 7", 0, record))
        request = check_request(request)
        check_target(tokenizer, request)
    except UserError as error:
        return str(error)
    return request, tokenize(tokenizer, [in_context(request, "", request.target_new)])[0]


def test_a_thousand_mutated_records_are_read_right_or_refused_with_their_place():
    rng, tokenizer = random.Random(0), make_tokenizer()
    done = {True: 0, False: 0}
    for _ in range(1000):
        record = mutated(rng)
        found = outcome(record, tokenizer)
        done[isinstance(found, tuple)] += 1
        if isinstance(found, str):
            assert found.startswith("edits.jsonl, line 7")
            assert len(found) < 1000
            continue
        request, tokens = found
        given = record.get("target", record.get("answer", record.get("target_new")))
        given = given[0] if isinstance(given, list) else given
        assert request.target_new == str(given[0] if isinstance(given, list) else given).strip()
        assert tokenizer.decode(tokens.target).removeprefix(request.joiner or " ").lstrip() == request.target_new
        prompt = str(record.get("prompt", record.get("question")))
        whole = prompt.replace("{}", request.subject, 1) if "{}" not in request.subject else prompt
        assert whole.lstrip().startswith(request.question)
        assert whole.lstrip()[len(request.question) :] in ("", " ")
        start, end = request.subject_span
        assert request.question[start:end] == request.subject
        assert not request.subject or 0 <= tokens.subject_last < tokens.target_start
    assert min(done.values()) > 200
