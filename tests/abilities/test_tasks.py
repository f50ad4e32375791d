"""Each task's data, prompt and judge."""

import json

import datasets
import pytest

from sphere_pl.abilities.evaluate import load_items, task_named
from sphere_pl.abilities.sources import read_items
from sphere_pl.abilities.task import Item
from sphere_pl.abilities.tasks import TASKS
from sphere_pl.abilities.tasks.boolq import judge_yes_no
from sphere_pl.abilities.tasks.gsm8k import judge, judge_substring
from sphere_pl.abilities.tasks.natural_questions import judge_exact, judge_span
from sphere_pl.abilities.tasks.rte import judge_true_false
from sphere_pl.errors import UserError

# File, or field of the hub's record, that each task's items come from; and how many real items there are.
REAL = {
    "gsm8k": 1319,
    "gsm8k_gold_hint": 1319,
    "rte": 2489,
    "rte_one_token": 2489,
    "nq": 3610,
    "nq_with_passage": 3610,
    "boolq": 3267,
    "boolq_one_token": 3267,
    "sst2": 872,
    "cola": 527 + 516,
    "mmlu": 14_042,
}


# Items of each task in the files that the fixture `data_dir` makes.
MADE = {"gsm8k": 2, "gsm8k_gold_hint": 2, "rte": 2, "rte_one_token": 2, "nq": 2, "nq_with_passage": 2, "boolq": 3,
        "boolq_one_token": 3, "sst2": 2, "cola": 4, "mmlu": 2}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_a_long_file_loads_whole(data_dir, name):
    for path in data_dir.rglob("*.*"):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        head = 0 if path.suffix == ".jsonl" or path.name.startswith("cola") else 1
        path.write_text("".join(lines[:head] + lines[head:] * 200), encoding="utf-8")
    items = read_items(TASKS[name], str(data_dir))
    assert len(items) == MADE[name] * 200
    assert all(item.prompt.rstrip() for item in items)
    if TASKS[name].judge is None:
        assert all(0 <= item.label < len(item.choices) for item in items)
    if not TASKS[name].judge or name.endswith("one_token"):
        assert len({item.label for item in items}) == 2


@pytest.mark.parametrize("name", REAL)
def test_a_real_file_loads_whole(real_data, name):
    items = read_items(TASKS[name], str(real_data))
    assert len(items) == REAL[name]
    assert all(item.prompt.rstrip() for item in items)
    if TASKS[name].judge is None:
        assert all(0 <= item.label < len(item.choices) for item in items)
    if not TASKS[name].judge or name.endswith("one_token"):
        assert len({item.label for item in items}) == (4 if name == "mmlu" else 2)


def test_every_task_has_data_metrics_and_a_way_to_answer(data_dir):
    for name, task in TASKS.items():
        items = read_items(task, str(data_dir))
        assert items, name
        assert bool(task.judge) == bool(task.new_tokens)
        assert all(bool(item.choices) != bool(task.judge) for item in items)
        assert not any(item.prompt.endswith(" ") and item.choices for item in items)


def test_paper_prompts_are_the_authors(data_dir):
    def first(name):
        return read_items(TASKS[name], str(data_dir))[0].prompt

    assert first("gsm8k_gold_hint") == (
        "Q: A cup holds 3 pens. How many do 4 cups hold? A:Let's think step by step. 4 * 3 = <<4*3=12>>12 pens.\n "
        "Therefore, the answer (arabic numerals) is:"
    )
    assert first("rte_one_token") == 'Rome is a city in Italy. entails Rome is in "Italy".. True or False? answer:'
    assert first("nq_with_passage") == (
        "Refer to the passage below and answer the following question.\nPassage: \n\nIt is Germany.\n"
        "Question: where is berlin\nAnswer:"
    )
    assert first("boolq_one_token") == (
        "Please answer the given question based on the passage. The answer should be exact 'yes' or 'no'. passage: "
        "Rome is a city in Italy. question: is rome in italy. answer: "
    )


def test_the_clean_sums_do_not_hold_their_solution(data_dir):
    for item in read_items(TASKS["gsm8k"], str(data_dir)):
        assert "<<" not in item.shots + item.prompt
        assert not any(answer in item.prompt for answer in item.answers)


def test_labels_and_choices_belong_together(data_dir):
    def right(name):
        return [item.choices[item.label] for item in read_items(TASKS[name], str(data_dir))]

    assert right("rte") == ["True", "False"]
    assert right("boolq") == ["Yes", "No", "Yes"]
    assert right("sst2") == ["positive", "negative"]
    assert right("mrpc") == ["Yes", "No"]
    assert right("cola") == ["Yes", "No"] * 2
    assert right("mmlu") == ["A", "B"]
    assert [item.label for item in read_items(TASKS["rte_one_token"], str(data_dir))] == [1, 0]
    assert [item.label for item in read_items(TASKS["boolq_one_token"], str(data_dir))] == [1, 0, 1]


def test_mmlu_asks_behind_worked_examples_of_the_same_subject(data_dir):
    (data_dir / "mmlu/test/music_test.csv").write_text("Which is a key?,oak,C major,sea,tin,B\n")  # no header, letters
    (data_dir / "mmlu/dev/music_dev.csv").write_text("Which is a note?,G sharp,salt,ox,ivy,A\n")
    music, *geography = read_items(TASKS["mmlu"], str(data_dir))
    assert music.label == 1
    assert "Exam questions on music," in music.shots
    assert music.shots.endswith("Question: Which is a note?\nA. G sharp\nB. salt\nC. ox\nD. ivy\nAnswer: A\n\n")
    assert all("world geography" in item.shots and "note" not in item.shots for item in geography)


HUB = {
    ("openai/gsm8k", "main", "test"): [{"question": "1 + 1?", "answer": "It is 2.\n#### 2"}],
    ("nyu-mll/glue", "rte", "validation"): [{"sentence1": "a", "sentence2": "b", "label": 0, "idx": 0}],
    ("nyu-mll/glue", "sst2", "validation"): [{"sentence": "a", "label": 1, "idx": 0}],
    ("nyu-mll/glue", "mrpc", "validation"): [{"sentence1": "a", "sentence2": "b", "label": 1, "idx": 0}],
    ("nyu-mll/glue", "cola", "validation"): [{"sentence": "a", "label": 1, "idx": 0}],
    ("google/boolq", None, "validation"): [{"question": "a", "answer": True, "passage": "b"}],
    ("google-research-datasets/nq_open", None, "validation"): [{"question": "a", "answer": ["b"]}],
    ("cais/mmlu", "all", "test"): [{"question": "a", "subject": "us_history", "choices": list("wxyz"), "answer": 2}],
    ("cais/mmlu", "all", "dev"): [{"question": "b", "subject": "us_history", "choices": list("wxyz"), "answer": 3}],
}


@pytest.mark.parametrize("name", [name for name in TASKS if name != "nq_with_passage"])
def test_records_of_the_hub_are_read(monkeypatch, name):
    monkeypatch.setattr(datasets, "load_dataset", lambda hub, config, split: HUB[hub, config, split])
    (item,) = read_items(TASKS[name], None)
    right = {"rte": 0, "rte_one_token": 1, "mmlu": 2}.get(name, 1)
    assert item.label == right


def test_a_hub_that_is_out_of_reach_says_which_file_would_do(monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        UserError, match=r"'boolq' reads google/boolq .*no route.*boolq-dev.jsonl .*--abilities.data_dir"
    ):
        read_items(TASKS["boolq"], None)


def test_passages_that_the_hub_has_not_are_asked_for(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda hub, config, split: HUB[hub, config, split])
    with pytest.raises(UserError, match="holds no passage"):
        read_items(TASKS["nq_with_passage"], None)


@pytest.mark.parametrize("name", TASKS)
def test_a_missing_file_is_named_with_where_to_get_it(tmp_path, name):
    with pytest.raises(UserError, match=rf"'{name}' needs .* in --abilities.data_dir=.*Get it from https"):
        read_items(TASKS[name], str(tmp_path))


@pytest.mark.parametrize(
    ("name", "file", "content", "words"),
    [
        ("boolq", "boolq-dev.jsonl", "", "is empty"),
        ("boolq", "boolq-dev.jsonl", '{"question": "a"', "line 1: malformed JSON"),
        ("boolq", "boolq-dev.jsonl", '{"question": "a", "answer": true}', "line 1: the field 'passage' is missing"),
        ("boolq", "boolq-dev.jsonl", '{"question": "a", "answer": "yes", "passage": "b"}', "'answer' is str"),
        ("boolq", "boolq-dev.jsonl", "\u00e9".encode("latin-1"), "is not UTF-8"),
        ("gsm8k", "gsm8k-test.jsonl", '{"question": "a", "answer": "it is 2"}', "does not end in '#### <result>'"),
        ("nq", "nq-open-dev.jsonl", '{"question": "a", "answer": []}', "holds no answer"),
        ("nq", "nq-open-dev.jsonl", '{"question": "a", "answer": [[]]}', "must be a list of strings"),
        ("rte", "rte-train.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\n", "line 2: the row does not have"),
        ("rte", "rte-train.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t-1\n", "line 2: .* is '-1', expected"),
        ("sst2", "sst2-dev.tsv", "text\tlabel\na\t1\n", "line 2: the field 'sentence' is missing"),
        ("cola", "cola-in-domain-dev.tsv", "a\t2\t\tb\n", "line 1: the field 'label' is '2', expected unacceptable or"),
        ("cola", "cola-in-domain-dev.tsv", "a\t1\tb\n", "line 1: the row does not have as many cells"),
        ("mmlu", "mmlu/test/world_geography_test.csv", "q,a,b,c,d,E\n", "is 'E', expected A or B or C or D"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_with_its_name_and_line(data_dir, name, file, content, words):
    path = data_dir / file
    path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=f"(?s){path.name}.*({words})"):
        read_items(TASKS[name], str(data_dir))


def test_a_folder_that_is_none_and_a_task_that_is_none_are_refused(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        read_items(TASKS["nq"], str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"'bool' is unknown. Known: gsm8k, .*boolq"):
        task_named("bool")


def test_a_file_with_a_header_alone_has_no_items(data_dir):
    (data_dir / "sst2-dev.tsv").write_text("sentence\tlabel\n")
    with pytest.raises(UserError, match="'sst2' has no items"):
        load_items(TASKS["sst2"], str(data_dir), None, None)


def test_the_choice_of_items_is_seeded_and_in_order(tmp_path):
    records = [{"question": f"q{number}", "answer": ["a"]} for number in range(50)]
    (tmp_path / "nq-open-dev.jsonl").write_text("\n".join(map(json.dumps, records)))

    def chosen(seed, limit=10):
        return [item.prompt for item in load_items(TASKS["nq"], str(tmp_path), limit, seed)]

    everything = chosen(None, None)
    assert len(everything) == 50
    assert chosen(None) == everything[:10]
    assert chosen(1) == chosen(1) != chosen(2)
    assert chosen(1) == [prompt for prompt in everything if prompt in chosen(1)]
    assert chosen(0, 60) == everything


@pytest.mark.parametrize(
    ("text", "result", "expected"),
    [
        (" 4 * 3 = 12. The answer is 12.", "12", 1),
        (" The answer is $1,100 a day", "1,100", 1),
        (" The answer is 12, not 13.", "13", 0),
        (" There are 7, then 12", "12", 1),
        (" Then there are 12. The answer is twelve.", "12", 1),
        (" The answer is 12.00.", "12", 1),
        (" I do not know", "12", -1),
    ],
)
def test_a_sum_is_judged_by_its_concluding_number(text, result, expected):
    assert judge(text, Item("", 1, answers=(result,))) == expected


def test_the_authors_judges_have_their_quirks():
    three = Item("", 1, answers=("3",))
    assert (judge_substring(" 13", three), judge_substring(" 4", three)) == (1, 0)
    assert [judge_true_false(text, three) for text in (" True", "FALSE", " untrue", " yes")] == [1, 0, 1, -1]
    assert [judge_yes_no(text, three) for text in (" Yes", "no", " know", " a")] == [1, 0, 0, -1]


def test_open_answers_are_compared_normalised():
    item = Item("", 1, answers=("The Beatles", "Queen"))
    assert [judge_exact(text, item) for text in (" beatles.", "the  Queen", "Queen and King", "")] == [1, 1, 0, 0]
    assert [judge_span(text, item) for text in ("It was the Beatles!", "a Queenly one", "")] == [1, 0, 0]
