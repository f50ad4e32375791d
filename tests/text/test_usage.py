"""The name that was meant, and the program as it was started."""

import sys

import pytest

from sphere_pl.text.usage import announced, did_you_mean, nearest, program

KNOWN = [
    "--data.limit",
    "--data.batch_size",
    "--abilities.limit",
    "--model.name",
    "--model.statistics.batch_size",
    "--run_dir",
]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--data.limt", ["--data.limit"]),
        ("--limit", ["--data.limit", "--abilities.limit"]),
        ("--batch-size", ["--data.batch_size"]),
        ("--Run-Dir", ["--run_dir"]),
        ("--modle.name", ["--model.name"]),
        ("--data.li", ["--data.limit"]),
        ("--wholly.other", []),
    ],
)
def test_the_nearest_name_is_found(given, meant):
    assert nearest(given, KNOWN) == meant


def test_a_question_names_what_may_be_meant():
    assert did_you_mean("fitt", ["fit", "export"]) == "Did you mean fit?"
    assert did_you_mean("--limit", KNOWN) == "Did you mean --data.limit or --abilities.limit?"
    assert did_you_mean("zzz", ["fit"]) == did_you_mean("fit", []) == ""


@pytest.mark.parametrize(
    ("argv", "typed", "shown"),
    [
        ("/usr/lib/sphere_pl/__main__.py", ["python3", "-m", "sphere_pl"], "python3 -m sphere_pl"),
        ("/usr/bin/sphere_pl", ["/usr/bin/python", "/usr/bin/sphere_pl"], "sphere_pl"),
        ("-c", ["python", "-c", "..."], "python -m sphere_pl"),
    ],
)
def test_the_program_is_named_as_it_was_started(monkeypatch, argv, typed, shown):
    monkeypatch.setattr(sys, "argv", [argv])
    monkeypatch.setattr(sys, "orig_argv", typed)
    assert program() == shown


def test_a_line_on_a_terminal_is_taken_away_again(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with announced("loading ..."):
        assert capsys.readouterr().err == "loading ..."
    assert capsys.readouterr().err == "\r\x1b[2K"
    with announced("loading ...", quiet=True):
        pass
    assert capsys.readouterr().err == ""
