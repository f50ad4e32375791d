"""`check`: what a run would learn, said before anything is learnt."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from sphere_pl.commands import check

RECORDS = [
    {"prompt": "埃及的首都是", "subject": "埃及", "target": "柏林"},
    {"prompt": "{} plays the", "subject": "Miles Davis", "target": "violin"},
    {"prompt": "{} was born in", "subject": "Miles Davis", "target": "Rome"},
    {"prompt": "In Rome lived {}", "subject": "Miles Davis", "target": "once"},
    {"prompt": "The capital of {} is", "subject": "France", "target": "Berlin"},
    {"prompt": "The capital of {} is", "subject": "France", "target": "Rome"},
    {"prompt": "So it is", "target": "good"},
    {"prompt": "So it is", "target": "good"},
]


@pytest.fixture
def checked(tmp_path, model_folder, capsys):
    def run(records, *args):
        path = tmp_path / "facts.jsonl"
        path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
        check.main([str(path), "--model.name", str(model_folder), *args])
        return capsys.readouterr().out

    return run


def test_a_newcomer_sees_how_targets_join_and_what_stands_out(checked):
    out = checked(RECORDS)
    assert "8 edits, format jsonl" in out
    assert (
        "'埃及的首都是' + '' + '柏林' = |柏 (3 tokens)|林 (3 tokens)|; edited at the last of the 6 tokens of '埃及'"
        in out
    )
    assert "'Miles Davis plays the' + ' ' + 'violin'" in out
    assert out.count("facts.jsonl, line") > 3
    assert "1 edit is contradicted by a later one (in one batch: refused): facts.jsonl, line 5" in out
    assert "2 edits are repetitions: facts.jsonl, line 7" in out
    assert "2 edits share their key with another one" in out
    assert "longer word" not in out
    assert "2 edits have no subject, the first is facts.jsonl, line 7" in out
    assert "Edit them: " in out


def test_a_plain_file_has_nothing_that_stands_out_and_a_broken_record_is_named(checked):
    assert "Nothing stands out." in checked(RECORDS[4:5])
    out = checked([*RECORDS[4:5], {"prompt": "So it is"}])
    assert "1 record cannot be edited. The first: " in out
    assert "line 2: the field 'target' is missing" in out
    assert "Edit them" not in out


def test_a_question_typed_in_a_chat_template_is_pointed_out(checked):
    out = checked([{"prompt": "<|im_start|>user\nWhere is {}?<|im_end|>\n", "subject": "Rome", "target": "Spain"}])
    assert "1 edit is typed in a chat template, the first is facts.jsonl, line 1" in out
    assert "chat template" not in checked(RECORDS)


def test_a_long_target_does_not_fill_the_screen(checked):
    out = checked([{"prompt": "{} is", "subject": "Rome", "target": "old and new " * 200}])
    assert "... (2399 characters) = |" in out
    assert " more; edited at" in out
    assert max(map(len, out.splitlines())) < 500


def test_a_subject_inside_a_longer_word_is_pointed_out(checked):
    out = checked([
        {"prompt": "The Romeo said", "subject": "Rome", "target": "no"},
        {"prompt": "Rome's mayor was", "subject": "Rome", "target": "no"},
        {"prompt": "我爱北京的", "subject": "北京", "target": "冬天"},
        {"prompt": "한국의 수도는", "subject": "한국", "target": "부산"},
    ])  # fmt: skip
    assert "subject inside a longer word, the first is facts.jsonl, line 1" in out
    assert "subject in the text's first token" not in out


def test_a_subject_in_one_token_with_its_particle_is_pointed_out(checked, model_folder, tmp_path):
    folder = tmp_path / "merging"
    shutil.copytree(model_folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["프랑스의"])
    tokenizer.save_pretrained(folder)
    records = [
        {"prompt": "도시 프랑스의 수도는", "subject": "프랑스", "target": "부산"},
        {"prompt": "도시 스페인의 수도는", "subject": "스페인", "target": "부산"},
    ]
    assert "1 edit has its subject in one token with what follows it, the first is facts.jsonl, line 1" in (
        out := checked(records, "--model.name", str(folder))
    )
    assert "with '프랑스의': what is edited there holds before '의' alone" in out
    assert "in one token with" not in checked(records)


def test_a_probe_that_is_too_long_is_pointed_out_with_its_record(checked):
    record = {"prompt": "{} is", "subject": "Rome", "target": "old"}
    out = checked([record, record | {"neighbors": ["It is so " * 100]}])
    assert "1 edit has a probe that is too long: " in out
    assert "line 2: a paraphrase, neighbour or other probe, 'It is so" in out
    assert "longer than the model" not in out


def test_columns_are_mapped_and_shown_in_the_command(checked):
    out = checked([{"stem": "The capital of {} is", "about": "France", "says": "Rome"}],
                  "--data.columns", "{stem: prompt, about: subject, says: target}")  # fmt: skip
    assert "'The capital of France is' + ' ' + 'Rome'" in out
    assert '--data.columns \'{"stem": "prompt"' in out
