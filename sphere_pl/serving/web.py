"""The JSON API and the page: a thin shell around an `EditingSession`."""

import errno
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from sphere_pl.errors import UserError
from sphere_pl.process.failures import DiskFullError, MemoryShortageError
from sphere_pl.serving.session import EditingSession

MOST_BYTES = 65_536  # of a request
_PATIENCE = 60.0  # seconds that a request waits for its turn
_LOCAL = ("127.0.0.1", "localhost", "[::1]")
_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"

Line = Annotated[str, Field(min_length=1, max_length=1000)]
Lines = Annotated[list[Line], Field(max_length=20)]


class Body(BaseModel):
    """What a request may hold, and nothing else."""

    model_config = ConfigDict(extra="forbid", strict=True)


class FactBody(Body):
    """A fact, with the fields of format `jsonl` that concern one."""

    prompt: Line
    subject: Line
    target: Annotated[str, Field(min_length=1, max_length=200)]
    paraphrases: Lines = []
    neighbors: Lines = []


class AskBody(Body):
    """Prompts to answer."""

    prompts: Annotated[list[Line], Field(min_length=1, max_length=20)]
    max_tokens: Annotated[int, Field(ge=1, le=200)] = 20
    chat: bool = False


class UndoBody(Body):
    """An edit, by case id or subject."""

    edit: Line


class ExportBody(Body):
    """A form to export in."""

    kind: Literal["model", "adapter", "delta"]


class BusyError(Exception):
    """Another request has the model for too long."""


class Turns:
    """Lets one request at a time have the model; the others wait, for so long at most.

    Args:
        patience: Seconds.
    """

    def __init__(self, patience: float = _PATIENCE) -> None:
        self.patience, self._lock = patience, Lock()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Have the model.

        Raises:
            BusyError: If it does not become free in time.
        """
        if not self._lock.acquire(timeout=self.patience):
            raise BusyError
        try:
            yield
        finally:
            self._lock.release()


def make_app(session: EditingSession, token: str | None = None, patience: float = _PATIENCE) -> FastAPI:
    """The application.

    Args:
        session: What it serves.
        token: What a request must bring as its bearer token; None on the loopback interface, where requests must name
            this machine as their host instead.
        patience: Seconds that a request waits for another one.
    """
    app = FastAPI(title="sphere_pl", docs_url=None, redoc_url=None)
    turns = Turns(patience)
    _add_errors(app)
    _add_guard(app, token)
    _add_reading(app, session, turns)
    _add_writing(app, session, turns)
    return app


def _add_reading(app: FastAPI, session: EditingSession, turns: Turns) -> None:
    page = (Path(__file__).with_name("page.html")).read_text(encoding="utf-8")

    @app.get("/")
    def show() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": _PAGE_POLICY})

    @app.get("/api/state")
    def state() -> dict[str, Any]:
        with turns.one():
            return session.overview()

    @app.post("/api/read")
    def read(fact: FactBody) -> dict[str, Any]:
        with turns.one():
            return session.read(fact.model_dump())._asdict()

    @app.post("/api/ask")
    def ask(body: AskBody) -> list[dict[str, str]]:
        with turns.one():
            cases = session.ask(body.prompts, body.max_tokens, body.chat)
        return [{"prompt": each.prompt, "unedited": each.before, "edited": each.after} for each in cases]


def _add_writing(app: FastAPI, session: EditingSession, turns: Turns) -> None:
    @app.post("/api/edit")
    def edit(fact: FactBody) -> dict[str, Any]:
        with turns.one():
            edited: dict[str, Any] = _plain(session.edit(fact.model_dump()))
        return edited

    @app.post("/api/ask_all")
    def ask_all(_: Body) -> dict[str, Any]:
        with turns.one():
            return session.ask_all()

    @app.post("/api/undo")
    def undo(body: UndoBody) -> dict[str, Any]:
        with turns.one():
            undone: dict[str, Any] = _plain(session.undo(body.edit))
        return undone

    @app.post("/api/export")
    def export(body: ExportBody) -> dict[str, Any]:
        with turns.one():
            folder, notes = session.export(body.kind)
        return {"folder": str(folder), "notes": notes}


def _add_guard(app: FastAPI, token: str | None) -> None:
    """Refuse what comes from elsewhere, and what is too long to be read."""

    @app.middleware("http")
    async def guard(request: Request, follow: Callable[[Request], Awaitable[Response]]) -> Response:
        host = request.headers.get("host", "").rsplit(":", 1)[0] if token is None else ""
        if token is None and host not in _LOCAL:  # a page of another site, whose name leads here
            return _error(403, f"This server answers requests to 127.0.0.1, not to {host!r}.")
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
            return _error(403, f"This server answers its own page, not one of {origin!r}.")
        if token is not None and request.url.path != "/" and not _has_token(request, token):
            return _error(401, "The token is missing or wrong: send the header `Authorization: Bearer <token>`.")
        if request.method == "POST":
            length = request.headers.get("content-length", "")
            if not length.isdecimal():
                return _error(411, "The header Content-Length is missing.")
            if int(length[:20]) > MOST_BYTES:
                return _error(413, f"The request has {length[:20]} bytes, at most {MOST_BYTES:,} are read.")
        return await follow(request)


def _has_token(request: Request, token: str) -> bool:
    given = request.headers.get("authorization", "").encode("utf-8", "surrogateescape")
    return secrets.compare_digest(given, f"Bearer {token}".encode())


def _add_errors(app: FastAPI) -> None:
    """Every error is one message."""

    @app.exception_handler(UserError)
    async def mistake(_: Request, error: UserError) -> JSONResponse:
        return _error(507 if isinstance(error, DiskFullError | MemoryShortageError) else 422, str(error))

    @app.exception_handler(BusyError)
    async def busy(_: Request, error: BusyError) -> JSONResponse:
        return _error(409, "Another request has the model. Send this one again when that has ended.")

    @app.exception_handler(OSError)
    async def disk(_: Request, error: OSError) -> JSONResponse:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "The disk is full" if full else f"The disk could not be used ({error.strerror or error})"
        return _error(507 if full else 500, f"{what}: nothing was changed. Make room, and send the request again.")

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return _error(500, f"Something went wrong ({type(error).__name__}); what the server printed says where.")

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return _error(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        # Without what was given: it may be what JSON cannot hold.
        found = [f"{'.'.join(map(str, each['loc'][1:])) or 'the body'}: {each['msg']}" for each in error.errors()]
        return _error(422, "; ".join(found[:3]))


def _error(status: int, message: str) -> JSONResponse:
    text = message.encode("utf-8", "backslashreplace").decode()
    return JSONResponse({"error": text}, status)


def _plain(value: Any) -> Any:
    """Named tuples as dictionaries, at any depth."""
    if hasattr(value, "_asdict"):
        return {name: _plain(each) for name, each in value._asdict().items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value
