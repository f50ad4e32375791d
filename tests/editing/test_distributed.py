"""Several processes: shares of a batch, gathering, and whole runs on two CPU processes against one."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.tiny import tiny_arguments
from sphere_pl.editing.distributed import gather_shares, share_of
from sphere_pl.run.checkpoints import checkpoint_paths, newest_checkpoint

TWO = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_the_shares_of_all_processes_make_up_the_batch(n, processes):
    items = torch.arange(2.0 * n).reshape(n, 2)
    parts = [items[list(share_of(range(n), rank, processes))] for rank in range(processes)]
    lengths = {len(part) for part in parts}
    assert max(lengths) - min(lengths) <= 1
    longest = -(-n // processes)
    padded = torch.stack([torch.cat([part, part.new_zeros(longest - len(part), 2)]) for part in parts])
    for part in parts:
        assert torch.equal(gather_shares(part, n, processes, lambda _: padded), items)


def start(folder, *arguments, name="run"):
    command = [sys.executable, "-m", "sphere_pl", "fit", f"--run_dir={folder / name}", "--data.limit=7",
               "--data.batch_size=3", "--model.targets.steps=5", *arguments]  # fmt: skip
    environment = {**os.environ, "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def test_two_processes_edit_bit_for_bit_as_one_does(tmp_path, command_line, monkeypatch):
    """Each row is run alone, so that its numbers do not depend on the rows that a process runs beside it."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    few = ["--data.limit=3", "--data.batch_size=2", "--model.targets.steps=3", "--model.targets.max_tokens=1",
           "--model.contexts=1", "--model.evaluation.texts=0", "--model.evaluation.sample=2"]  # fmt: skip
    arguments = [*tiny_arguments(tmp_path), *few]
    process = start(tmp_path, *arguments, *TWO, name="two")
    status, _, errors = command_line("fit", *arguments, "--trainer.accelerator=cpu", f"--run_dir={tmp_path / 'one'}")
    assert status == 0, errors
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    one, two = (load_file(tmp_path / name / "edited.safetensors") for name in ("one", "two"))
    before = load_file(tmp_path / "model" / "model.safetensors")
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert torch.equal(weight, two[name]), name
        assert not torch.equal(weight, before[name]), name


@pytest.mark.slow
def test_two_processes_leave_the_weights_and_metrics_of_one(tmp_path):
    arguments = tiny_arguments(tmp_path)
    for name, more in (("one", []), ("two", TWO)):
        _, errors = (process := start(tmp_path, *arguments, *more, name=name)).communicate()
        assert process.returncode == 0, errors
    one, two = (load_file(tmp_path / name / "edited.safetensors") for name in ("one", "two"))
    for name, weight in one.items():
        assert (weight - two[name]).norm() <= 1e-5 * weight.norm()
    lines = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("one", "two")]
    assert len(lines[0]) == len(lines[1])  # one writer
    scores = [json.loads((tmp_path / name / "results.json").read_text())["after"] for name in ("one", "two")]
    assert scores[1] == pytest.approx(scores[0], rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["first", "second"])
def test_a_lost_process_ends_the_run_on_all_and_leaves_a_checkpoint(tmp_path, which):
    arguments = [*tiny_arguments(tmp_path), *TWO, "--data.limit=300", "--checkpoints.max_overhead=1"]
    process = start(tmp_path, *arguments)
    folder = tmp_path / "run" / "checkpoints"
    while len(checkpoint_paths(folder)) < 2:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    (child,) = children(process.pid)
    os.kill(process.pid if which == "first" else child, signal.SIGKILL)
    began = time.monotonic()
    _, errors = process.communicate()  # until both have closed their output
    assert time.monotonic() - began < 60
    assert any(words in errors for words in ("process of the run", "Child process"))
    assert newest_checkpoint(folder) is not None


def children(pid):
    done = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True, check=True)
    return [int(line.split()[0]) for line in done.stdout.splitlines() if "sphere_pl" in line]
