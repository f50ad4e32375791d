"""The table of commands and what becomes of mistakes."""

import subprocess
import sys
from importlib import import_module

import pytest

from sphere_pl.commands import COMMANDS, main


@pytest.mark.parametrize("asked", [[], ["-h"], ["--help"]])
def test_without_a_command_all_are_listed(asked, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sphere_pl", *asked])
    main()
    out = capsys.readouterr().out
    assert all(name in out and about in out for name, (_, about) in COMMANDS.items())


@pytest.mark.parametrize("module", sorted({module for module, _ in COMMANDS.values()}))
def test_every_command_has_its_entry(module):
    assert callable(import_module(module).main)


def test_an_unknown_command_is_named_with_those_there_are(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sphere_pl", "train"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: There is no command 'train'.\nThe commands are {', '.join(COMMANDS)}.\n"


@pytest.mark.parametrize("asked", [["--version"], ["fit", "--version"]])
def test_the_version_is_said_without_a_heavy_library(asked):
    program = (
        f"import sys; from sphere_pl.commands import main; sys.argv = ['sphere_pl', *{asked}]; main()\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'transformers', 'yaml')))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("sphere_pl 0.1.0 (torch 2.")
    assert "transformers 5." in done.stdout


@pytest.mark.parametrize(
    ("typed", "meant"),
    [(["exprot"], "Did you mean export?"), (["--data.limit", "3"], "Did you mean sphere_pl fit --data.limit 3?")],
)
def test_a_mistyped_or_forgotten_command_is_guessed(command_line, typed, meant):
    status, _, err = command_line(*typed)
    assert status == 2
    assert err.splitlines()[1] == meant
    assert len(err.splitlines()) == 3


def test_the_list_needs_no_heavy_library():
    program = (
        "import sys; from sphere_pl.commands import main; sys.argv = ['sphere_pl']; main()\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'transformers')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_lightnings_remarks_are_left_out_and_its_warnings_said_once(fresh_help):
    said = fresh_help[1]
    assert "a remark" not in said
    assert said.count("a warning") == 2
