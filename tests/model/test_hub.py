"""One question finds out whether the hub answers, however it answers."""

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

from sphere_pl.model import hub


@pytest.fixture
def endpoint(monkeypatch):
    """Make an address the hub's."""

    def use(address):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)

    return use


@pytest.mark.parametrize("status", [200, 401, 404, 503])
def test_any_answer_is_one(endpoint, status):
    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.handle_request, daemon=True).start()
    endpoint(f"http://127.0.0.1:{server.server_port}")
    assert hub.hub_trouble("organisation/model") is None
    server.server_close()


def test_a_slow_hub_is_one_that_answers(endpoint, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert hub.hub_trouble("organisation/model") is None


def test_no_hub_is_known_in_seconds(endpoint):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    endpoint(f"http://127.0.0.1:{port}")
    began = time.monotonic()
    assert f"http://127.0.0.1:{port} cannot be reached (" in hub.hub_trouble("organisation/model")
    assert time.monotonic() - began < 5


def test_a_hub_that_must_not_be_asked_is_not(endpoint, monkeypatch):
    endpoint("http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in hub.hub_trouble("organisation/model")
