"""What every command says of a mistyped argument: three lines at most, and the nearest that exists."""

import argparse
import shlex

import pytest

from sphere_pl.commands.parsers import users_mistakes
from sphere_pl.commands.wording import explain
from sphere_pl.errors import UserError
from sphere_pl.process.failures import DiskFullError

FIT = [
    ("--data.limt 20", "`--data.limt` is no argument", "--data.limit?"),
    ("--limit 20", "`--limit` is no argument", "--data.limit or"),
    ("--batch_size 5", "`--batch_size` is no argument", "Did you mean --data.batch_size?"),
    ("--data.li 5", "`--data.li` is no argument", "Did you mean --data.limit?"),
    ("--data.limit abc", "`--data.limit abc` is not valid: expected a whole number", ""),
    ("--data.limit", "`--data.limit` needs a value", ""),
    ("--data mine.jsonl", "`--data mine.jsonl`: no such YAML file", "Did you mean --data.path mine.jsonl?"),
    ("--data.conflicts=reprot", "expected ask, report, refuse or keep_last", "Did you mean report?"),
    ("--model.method memit", "Known: AlphaEdit, ", "Did you mean MEMIT, or --config method/memit,"),
    ("--model.method.rige 3", "`--model.method.rige` is no argument", "--model.method.init_args.ridge?"),
    ("--model.method.init_args.ridge abc", "`--model.method.init_args.ridge abc` is not valid: expected a number", ""),
    ("--wandb.zzz 3", "`--wandb.zzz` is no argument", "`--wandb` has project"),
    ("--config metod/memit", "no such file and no such group", "Did you mean method/memit?"),
    ("stray", "`stray` has no place here", ""),
]
OTHERS = [
    ("validate --run_di x", "`--run_di`", "Did you mean --run_dir?"),
    ("validate --dat.limit 3 --run_dir x", "`--dat.limit`", "Did you mean --data.limit?"),
    ("validate --data.limt 3 --run_dir x", "`--data.limt`", "Did you mean --data.limit?"),
    ("predict --max_tokens x", "`--max_tokens x` is not valid: expected a whole number", ""),
    ("export", "Missing: --run_dir (folder of the run)", ""),
    ("export --run_dir x --witout 3", "`--witout`", "Did you mean --without?"),
    ("diff --jsn", "`--jsn`", "Did you mean --json?"),
    ("compare", "Missing: runs (run folders", ""),
    ("check facts.jsonl --data.colums x", "`--data.colums`", "Did you mean --data.columns?"),
    ("locate --trace.fact 3", "`--trace.fact`", "Did you mean --trace.facts?"),
    ("dashboard --projct x", "`--projct`", "Did you mean --project?"),
]


@pytest.mark.parametrize(
    "message",
    [
        "argument --form: invalid choice: 'delt' (choose from 'delta', 'adapter')",  # 3.11
        "argument --form: invalid choice: 'delt' (choose from delta, adapter)",
        "argument --form: invalid choice: 'delt', maybe you meant 'delta'? (choose from delta, adapter)",  # 3.14
    ],
)
def test_a_wrong_choice_is_told_alike_by_all_versions_of_python(message):
    parser = argparse.ArgumentParser(prog="x")
    parser.add_argument("--form", choices=["delta", "adapter"])
    error, hint = explain(message, parser, [])
    assert error == "`--form delt` is not valid: expected delta or adapter."
    assert hint == "Did you mean delta?"


@pytest.mark.parametrize("value", ["o'clock", 'say "when"', """'both" of them""", "C:\\new", "two\nlines"])
def test_a_wrong_value_is_told_whatever_quotes_it_has(value):
    parser = argparse.ArgumentParser(prog="x")
    parser.add_argument("--port", type=int)
    error, _ = explain(f"argument --port: invalid int value: {value!r}", parser, [])
    assert error.endswith(" is not valid: expected a whole number.")
    assert shlex.split(error.split("`")[1]) == ["--port", value.replace("\n", " ")]


@pytest.mark.parametrize(("arguments", "words", "meant"), [(f"fit {each}", *rest) for each, *rest in FIT] + OTHERS)
def test_a_mistake_is_told_in_three_lines(command_line, tmp_path, monkeypatch, arguments, words, meant):
    monkeypatch.chdir(tmp_path)
    status, out, err = command_line(*arguments.split())
    lines = err.splitlines()
    assert status == 2
    assert out == ""
    assert len(lines) <= 3
    assert words in lines[0]
    if meant:
        assert meant in lines[1]
    if "--config" not in arguments:
        assert lines[-1].startswith(f"Help: sphere_pl {arguments.split()[0]} --help")


@pytest.mark.parametrize(
    ("text", "words", "meant"),
    [
        ("data:\n  limt: 3", "mine.yaml: `data.limt` is no setting", "Did you mean data.limit?"),
        ("dta:\n  limit: 3", "mine.yaml: `dta.limit` is no setting", "Did you mean data.limit?"),
        ("data:\n  limit: abc", "mine.yaml: `data.limit: abc` is not valid: expected a whole number", ""),
        ("model:\n  method:\n    class_path: memit", "mine.yaml: `model.method: memit` names no class", "MEMIT"),
        ("data: [\n  limit", "mine.yaml, line 2 is not YAML", ""),
    ],
)
def test_a_mistake_in_a_file_names_the_file_and_the_key(command_line, tmp_path, monkeypatch, text, words, meant):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    status, _, err = command_line("fit", "--config", "mine.yaml")
    lines = err.splitlines()
    assert status == 2
    assert len(lines) <= 3
    assert words in lines[0]
    assert meant in lines[1]


@pytest.mark.parametrize("kind", [ValueError, TypeError])
def test_what_a_setting_refuses_is_the_users_mistake_in_the_same_words(kind):
    with pytest.raises(UserError, match="must be above 0"), users_mistakes():
        raise kind("`ridge=0` must be above 0")


def test_a_mistake_that_is_known_as_one_keeps_its_kind_and_status():
    with pytest.raises(DiskFullError), users_mistakes():
        raise DiskFullError("The disk is full.")


def test_what_is_no_mistake_of_the_users_passes_as_it_is():
    with pytest.raises(KeyError), users_mistakes():
        raise KeyError("ours")
