"""The facts of a run of few: first on its page, in their own direction, as cards on a phone."""

import pytest

from sphere_pl.report import write_report
from sphere_pl.report.scripts import language
from tests.report.test_browser import look
from tests.report.test_page import EVIL, Tags, words

FACTS = [
    {"prompt": "法国的首都是", "wanted": "柏林", "before": "巴黎。", "after": "柏林。", "right": True, "kind": "edit"},
    {"prompt": "عاصمة فرنسا", "wanted": "برلين", "before": "باريس", "after": "", "right": False, "cause": "skipped"},
    {"prompt": EVIL, "wanted": EVIL, "before": EVIL, "after": EVIL, "right": False, "cause": "regularizer"},
]
FAILED = [
    {"subject": "S", "prompt": "P", "wanted": "W", "given": "", "cause": "skipped", "probability": 0.9,
     "edited_probability": 0.25},
]  # fmt: skip


@pytest.fixture
def few(make_run):
    """The page of a run of three facts in one batch."""

    def make(**changes):
        known = {"facts": FACTS, "failed": FAILED, "held": 1, "edits": 3, "causes": {"skipped": 1}, "advice": ["--x 1"]}
        return write_report(make_run("few", batches=1, size=3, changes=known | {"spearman": {}} | changes))

    return make


def test_a_run_of_few_facts_opens_with_them(few):
    text = words(few().read_text(encoding="utf-8"))
    assert text.index("1 of 3 facts holds") < text.index("The facts") < text.index("Failed edits")
    assert text.index("Failed edits") < text.index("Before and after")
    assert "✓ 法国的首都是 柏林 巴黎。 柏林。" in text
    assert "✗ عاصمة فرنسا برلين باريس nothing skipped" in text
    assert "skipped 90.0 % 25.0 %" in text
    assert "What to turn: --x 1" in text


def test_facts_that_are_asked_after_other_words_are_said_to_be(few):
    text = words(few(at_sink=2).read_text(encoding="utf-8"))
    assert (
        "all edits. 2 facts have their subject at the beginning, where this model has one key for all tokens: ask after"
        in text
    )


def test_the_chat_form_has_columns_where_it_was_asked(few):
    text = words(few().read_text(encoding="utf-8"))
    assert "in chat" not in text
    assert "ask after other words" not in text


def test_chat_answers_have_a_mark_of_their_own(few):
    asked = [fact | {"chat_after": "Bonn", "chat_right": True} for fact in FACTS[:1]]
    assert "柏林。 ✓ Bonn" in words(few(facts=asked).read_text(encoding="utf-8"))


def test_text_says_its_direction_and_language_and_is_no_markup(few):
    found = Tags(few().read_text(encoding="utf-8"))
    spoken = {each.get("lang") for tag, each in found.tags if tag == "bdi"}
    assert {"zh", "ar"} <= spoken
    assert all(each["dir"] == "auto" for tag, each in found.tags if tag == "bdi")
    assert all(tag != "img" for tag, _ in found.tags)


def test_panels_of_one_point_are_left_out_and_named(few):
    text = few().read_text(encoding="utf-8")
    holders = [each["id"] for _, each in Tags(text).tags if each.get("class") == "figure"]
    assert holders == []
    assert "Do the edits last? One point is no curve" in words(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("東京タワー", "ja"), ("서울은", "ko"), ("北京", "zh"), ("फ्रांस", "hi"), ("Ελλάδα", "el"), ("Genève, 5 €", "")],
)
def test_the_language_is_judged_by_the_script(text, expected):
    assert language(text) == expected


@pytest.mark.parametrize("width", [1100, 420])
def test_no_table_is_cut_off(browser, few, width):
    spoil = (
        "<script>addEventListener('load', () => { for (const t of document.querySelectorAll('.wide'))"
        "if (t.scrollWidth > t.clientWidth + 1) throw new Error('cut off: ' + t.textContent.slice(0, 60)); })</script>"
    )
    found, console = look(browser, few(), width, spoil)
    assert found["error"] == ""
    assert found["overflow"] <= 0
    assert console == []
