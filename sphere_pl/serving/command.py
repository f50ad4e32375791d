"""`python -m sphere_pl serve --run_dir R`: a page on which a model is edited, asked and put back by hand."""

import argparse
import gc
import ipaddress
import os
import secrets
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from sphere_pl.commands.arguments import add_load_arguments, load_options
from sphere_pl.commands.parsers import Parser
from sphere_pl.errors import UserError
from sphere_pl.history.by_hand import CURRENT
from sphere_pl.model.files import label_of
from sphere_pl.model.known import config_folder
from sphere_pl.process.console import say
from sphere_pl.process.interrupts import RunInterrupted
from sphere_pl.run.lock import RunLock
from sphere_pl.serving.session import EditingSession, Start
from sphere_pl.text.names import folder_name, from_yaml, option
from sphere_pl.text.usage import program

PORT = 8765


def main(args: Sequence[str]) -> None:
    """Serve a run until it is stopped.

    Raises:
        UserError: If the extra is missing, the address or the folder is taken, or there is nothing to serve.
    """
    given = _parser().parse_args(args)
    run_dir, start = _what(given)
    _check_installed()
    local = _is_loopback(given.host)
    token = None if local else secrets.token_urlsafe(24)
    with _listen(given.host, given.port) as listener, RunLock(run_dir):
        session = EditingSession.open(run_dir, load_options(given), start)
        gc.collect()
        gc.freeze()  # what stays for good is not searched for rubbish after every edit
        try:
            _serve(session, listener, token, given.host)
        except RunInterrupted:
            where = session.states.current
            say("Stopped." if where is None else f"Stopped. The edits are in the run {where}.")
            say(f"Serve them again: {program()} serve {option('--run_dir', run_dir)}")


def _parser() -> Parser:
    parser = Parser(
        "serve",
        description="Edit a model by hand, on a page in the browser or by its JSON API. Every edit is logged as that "
        "of a run (fit --from), in <run_dir>/serving; the run that is served stays as it is.",
    )
    parser.add_argument("--run_dir", type=Path, help="folder of a finished run, or a new one for --model.name")
    parser.add_argument("--model.name", dest="model_name", help="begin with this model: hub id, folder or GGUF file")
    parser.add_argument("--model.dtype", dest="dtype", help="in which type it is edited; that of fit if left out")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on; beyond this machine with a token")
    parser.add_argument("--port", type=int, default=PORT, help=f"port to serve on, 0 for any (default: {PORT})")
    add_load_arguments(parser)
    return parser


def _what(given: argparse.Namespace) -> tuple[Path, Start | None]:
    """The folder to serve, and the model that it begins with."""
    if given.run_dir is None and given.model_name is None:
        raise UserError("Name the run to serve with --run_dir <folder>, or a model with --model.name <name>.")
    if given.run_dir is not None and given.model_name is None:
        if not given.run_dir.is_dir():
            raise UserError(f"--run_dir={given.run_dir} is no folder. Give the folder of a finished run.")
        if (given.run_dir / CURRENT).is_file():
            raise UserError(
                f"--run_dir={given.run_dir} holds the edits of a session. Give the folder that was served, "
                f"{given.run_dir.absolute().parent}."
            )
        return given.run_dir, None
    default = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{folder_name(label_of(given.model_name))}"
    run_dir = given.run_dir or default
    if (run_dir / "edits.jsonl").is_file():
        raise UserError(f"--run_dir={run_dir} holds a run, which names its own model. Leave --model.name out.")
    defaults = from_yaml((config_folder() / "default.yaml").read_text(encoding="utf-8"))
    return run_dir, Start(given.model_name, given.dtype or defaults["model"]["dtype"], {})


def _check_installed() -> None:
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            "`serve` needs FastAPI and uvicorn: pip install 'sphere-pl[serve]', or in a checkout pip install -e "
            "'.[serve]'."
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    """Take the port, before a model is loaded.

    Raises:
        UserError: If that cannot be had.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error).rstrip(".")
        raise UserError(
            f"--host={host} --port={port} cannot be served on: {reason}. Name another --port, or stop what uses it."
        ) from error


def _serve(session: EditingSession, listener: socket.socket, token: str | None, host: str) -> None:
    import uvicorn

    from sphere_pl.serving.web import make_app

    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}/" + (f"#{token}" if token else "")
    say(f"Edit {session.overview()['model']} on {address} (Ctrl-C stops; the edit at hand is finished)")
    config = uvicorn.Config(make_app(session, token), log_level="warning", access_log=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[listener])
