"""A run folder belongs to one process at a time."""

import os
import signal
import subprocess
import sys

import pytest

from benchmarks.tiny import tiny_arguments
from sphere_pl.commands.fit import run
from sphere_pl.editing.distributed import is_first_process
from sphere_pl.errors import UserError
from sphere_pl.run.lock import RunLock

HOLD = """
import sys, time
from sphere_pl.run.lock import RunLock
with RunLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder until it is killed."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path, holder):
    lock = RunLock(tmp_path / "run")
    with pytest.raises(UserError, match="Another process is editing in"), lock:
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock, pytest.raises(UserError, match="Another process"), RunLock(tmp_path / "run"):
        pass
    with RunLock(tmp_path / "run"):
        pass


@pytest.mark.parametrize("more", [[], ["--ckpt_path=last"]], ids=["a new run", "a resumed one"])
def test_a_fit_in_a_held_folder_is_refused_and_writes_nothing(tmp_path, holder, more, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(sys, "argv", ["sphere_pl"])
    with pytest.raises(UserError, match="Another process is editing"):
        run(["fit", f"--run_dir={tmp_path / 'run'}", *tiny_arguments(tmp_path), *more])
    assert os.listdir(tmp_path / "run") == [".lock"]


@pytest.mark.parametrize(
    ("environment", "first"),
    [({}, True), ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True), ({"LOCAL_RANK": "1"}, False), ({"RANK": "2"}, False),
     ({"NODE_RANK": "1"}, False), ({"SLURM_PROCID": "3"}, False)],
)  # fmt: skip
def test_only_the_first_process_of_the_first_machine_takes_the_lock(monkeypatch, environment, first):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is first


def test_a_folder_in_which_nothing_was_written_is_not_left(tmp_path):
    with RunLock(tmp_path / "refused"):
        pass
    assert not (tmp_path / "refused").exists()
    (tmp_path / "kept").mkdir()
    with RunLock(tmp_path / "kept"):
        pass
    with RunLock(tmp_path / "written"):
        (tmp_path / "written" / "config.yaml").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "written"]
