"""Sessions on a tiny model."""

import socket
import threading

import httpx
import pytest
import uvicorn

from sphere_pl.history.saved import LoadOptions
from sphere_pl.serving.session import EditingSession, Start
from sphere_pl.serving.web import make_app

FACT = {"prompt": "The capital of {} is", "subject": "France", "target": "Berlin"}
OTHER = {"prompt": "{} is a city in", "subject": "Rome", "target": "Norway", "neighbors": ["Berlin is a city in"]}
THIRD = {"prompt": "The mother tongue of {} is", "subject": "Anna Karlsson", "target": "Italy"}


@pytest.fixture
def start(model_folder, tmp_path):
    """A tiny model, and settings with which editing it is quick."""
    (tmp_path / "corpus.txt").write_text("The capital of France is Paris. Rome is a city in Italy by the sea.")
    settings = {
        "model.layers": [1, 2],
        "model.statistics.corpus": str(tmp_path / "corpus.txt"),
        "model.statistics.tokens": 10,
        "model.statistics.cache_dir": str(tmp_path / "cache"),
        "model.targets.steps": 10,
        "model.method.init_args.null_space_threshold": 10.0,
    }
    return Start(str(model_folder), "float32", settings)


@pytest.fixture
def open_session(start, tmp_path):
    """Open the session in a folder, again and again."""
    return lambda name="served": EditingSession.open(tmp_path / name, LoadOptions(device="cpu"), start)


class Served:
    """A session behind its API, on a port of its own.

    Attributes:
        session: The session.
        address: Where it listens.
        app: The application.
    """

    def __init__(self, session, token=None, patience=60.0):
        self.session = session
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.app = make_app(session, token, patience)
        self._server = uvicorn.Server(uvicorn.Config(self.app, log_level="warning", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]})

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()

    def post(self, path, body, **headers):
        return httpx.post(f"{self.address}/api/{path}", json=body, headers=headers, timeout=120)

    def state(self):
        return httpx.get(f"{self.address}/api/state", timeout=60).json()
