"""Every command of docs/abilities.md is understood, and every task stands there."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from sphere_pl.abilities.tasks import TASKS

TEXT = (Path(__file__).parents[2] / "docs" / "abilities.md").read_text()
COMMANDS = [line.split("#")[0].strip() for line in TEXT.splitlines() if line.startswith("python -m sphere_pl")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command, monkeypatch, capsys):
    from sphere_pl.commands import main

    monkeypatch.setattr(sys, "argv", ["sphere_pl", *shlex.split(command)[3:], "--print_config"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert "abilities:" in capsys.readouterr().out


def test_every_task_and_its_metric_stand_in_the_table():
    assert len(COMMANDS) == 5
    rows = {found[1]: line for line in TEXT.splitlines() if (found := re.match(r"\| `(\w+)` \|", line))}
    assert set(rows) == set(TASKS)
    for name, task in TASKS.items():
        assert f"| {task.variant} |" in rows[name]
        assert f"| {task.chance:g} |" in rows[name]
        assert task.sources[0].hub in rows[name] or "the same" in rows[name] or "not there" in rows[name]
