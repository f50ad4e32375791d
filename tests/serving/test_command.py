"""What `serve` refuses, in one message each, and a server that is killed."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import httpx
import pytest

from sphere_pl.commands import undo  # noqa: F401 (the libraries, loaded once)
from sphere_pl.run.lock import RunLock
from sphere_pl.serving import command
from tests.serving.conftest import FACT, OTHER

pytestmark = pytest.mark.filterwarnings("ignore:The corpus")


def refused(command_line, *args):
    status, _, err = command_line("serve", *map(str, args))
    assert status == 2
    assert "Traceback" not in err
    return err


def test_nothing_to_serve_is_said(command_line, tmp_path):
    assert "Name the run to serve" in refused(command_line)
    assert "is no folder" in refused(command_line, "--run_dir", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "--model.name" in refused(command_line, "--run_dir", tmp_path / "empty", "--port", 0)
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == [".lock"]


def test_a_folder_that_another_server_has_is_refused(command_line, tmp_path, model_folder):
    with RunLock(tmp_path / "taken"):
        err = refused(command_line, "--run_dir", tmp_path / "taken", "--model.name", model_folder, "--port", 0)
    assert "Another process is editing in" in err


def test_a_port_in_use_is_refused_before_anything_is_loaded_or_made(command_line, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        err = refused(command_line, "--run_dir", tmp_path / "new", "--model.name", "no/model", "--port", port)
    assert f"--port={port} cannot be served on: Address already in use" in err
    assert not (tmp_path / "new").exists()


def test_a_missing_extra_is_named(command_line, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert "pip install 'sphere-pl[serve]'" in refused(command_line, "--run_dir", tmp_path)


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("a.b", False)]
)
def test_only_the_loopback_interface_needs_no_token(host, local):
    assert command._is_loopback(host) is local


class Process:
    """A server in a process of its own."""

    def __init__(self, *args):
        words = [sys.executable, "-m", "sphere_pl", "serve", *map(str, args), "--port=0"]
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
        self.address = None
        while self.address is None:
            line = self.process.stdout.readline()
            assert line, self.process.wait()
            found = re.search(r"http://\S+", line)
            self.address = found and found[0]

    def post(self, path, body):
        return httpx.post(f"{self.address}api/{path}", json=body, timeout=120).json()

    def edits(self):
        return [each["case_id"] for each in httpx.get(f"{self.address}api/state", timeout=60).json()["edits"]]

    def end(self, signum):
        self.process.send_signal(signum)
        out = self.process.communicate(timeout=120)[0]
        return self.process.returncode, out


@pytest.mark.slow
def test_a_server_that_is_killed_in_the_middle_of_an_edit_loses_none_that_was_answered(open_session, tmp_path):
    open_session().edit(FACT)
    (tmp_path / "served" / "serving" / "00001").rename(tmp_path / "run")
    server = Process("--run_dir", tmp_path / "run")
    server.post("edit", OTHER)

    def lost():
        with suppress(httpx.HTTPError):
            server.post("edit", {**OTHER, "subject": "Oslo"})

    waiting = threading.Thread(target=lost)
    waiting.start()
    time.sleep(0.8)
    server.end(signal.SIGKILL)
    waiting.join()
    again = Process("--run_dir", tmp_path / "run")
    assert again.edits()[:2] == ["s1", "s2"]
    status, out = again.end(signal.SIGINT)
    assert status == 0
    assert "Stopped. The edits are in the run" in out
