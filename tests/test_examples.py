"""Every example runs as its README says, in seconds."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"
COMMANDS = re.findall(r"^python (examples/\S+\.py)", (EXAMPLES / "README.md").read_text(), re.MULTILINE)


# They are programs of their own: what other packages warn of is theirs to show.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run an example as a program, in this process: one of its own would load PyTorch again; returns what it says."""
    monkeypatch.chdir(EXAMPLES.parent)
    monkeypatch.syspath_prepend(EXAMPLES)

    def run(path, *arguments):
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        with torch.random.fork_rng(devices=[]):
            runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_has_its_command_in_the_readme():
    scripts = {f"examples/{path.name}" for path in EXAMPLES.glob("*.py")} - {"examples/tiny.py"}
    assert set(COMMANDS) == scripts


@pytest.mark.parametrize("path", COMMANDS)
def test_a_foreign_loop_is_watched_and_its_updates_are_projected(run, path):
    lines = [line for line in run(path, "--steps", "4").splitlines() if "loss" in line]
    assert len(lines) == (1 if "lightning" in path else 4)
    loss, energy, removed = re.search(r"loss ([\d.]+) energy ([+-][\d.]+)% removed ([\d.]+)%", lines[-1]).groups()
    assert 4 < float(loss) < 7  # ln 256 = 5.5 for a model that knows nothing
    assert 0 < abs(float(energy)) < 5
    assert 5 < float(removed) < 95


def test_each_batch_of_closed_form_edits_does_what_it_is_for(run):
    lines = run("examples/closed_form_edits.py", "--steps", "4").splitlines()
    losses = [re.search(r"before ([\d.]+) loss ([\d.]+)", line).groups() for line in lines]
    assert len(losses) == 4
    assert all(float(after) < float(before) for before, after in losses)


@pytest.mark.parametrize(
    ("path", "second"),
    [("examples/plain_pytorch.py", "step 1 loss"), ("examples/closed_form_edits.py", "batch 1 before")],
)
def test_a_model_of_ones_own_is_taken(run, path, second, tiny_lm, tmp_path):
    lm = tiny_lm()
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    assert second in run(path, "--steps", "2", "--model", str(tmp_path))
