"""The commands of `python -m sphere_pl`: which there are, and what becomes of a user's mistake."""

import errno
import importlib
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sphere_pl.errors import UserError
from sphere_pl.process.console import finish_output, prepare_streams
from sphere_pl.process.failures import doing, explained, interrupted
from sphere_pl.process.interrupts import Interrupts, RunInterrupted
from sphere_pl.text.usage import announced, did_you_mean, program
from sphere_pl.text.version import __version__, version_of

# Each module has a `main(args)`; it is imported when its command is given.
COMMANDS = {
    "fit": ("sphere_pl.commands.fit", "edit a language model, batch after batch"),
    "check": ("sphere_pl.commands.check", "say what would be learnt from a file, before anything is"),
    "validate": ("sphere_pl.commands.validate", "score a saved run or a checkpoint"),
    "test": ("sphere_pl.commands.validate", "the same as validate"),
    "predict": ("sphere_pl.commands.predict", "answer prompts before and after the edits"),
    "serve": ("sphere_pl.serving.command", "edit, ask and undo by hand, on a page in the browser or by a JSON API"),
    "export": ("sphere_pl.commands.export", "write the edited model, as it was after any batch or without some edits"),
    "undo": ("sphere_pl.commands.undo", "take edits back, into a run folder of its own"),
    "log": ("sphere_pl.commands.log", "list what was edited when, and what was taken back"),
    "verify": ("sphere_pl.commands.verify", "check a run's files, and whether a served folder is what its log makes"),
    "diff": ("sphere_pl.commands.diff", "show which matrices changed and how much"),
    "compare": ("sphere_pl.commands.compare", "put several runs on one page"),
    "locate": ("sphere_pl.commands.locate", "find the layers that hold facts, by causal tracing"),
    "tune": ("sphere_pl.commands.tune", "search for the settings that suit a model"),
    "dashboard": ("sphere_pl.commands.dashboard", "arrange the panels of a wandb project"),
}
_DISK_TROUBLE = {
    errno.EROFS,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.ENOENT,
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.EISDIR,
}


def main() -> None:
    """Entry point of `python -m sphere_pl`; it ends with one message where nothing is wrong with the program.

    The status is 2 after a user's mistake or on a full disk, 3 without memory, 128 and the signal's number after one.
    """
    # LightningCLI takes its arguments either from its caller or from sys.argv, and warns if it sees both.
    args, sys.argv[1:] = sys.argv[1:], []
    prepare_streams()
    try:
        _main(args)
    except BrokenPipeError:  # as of `| head`: whoever reads has seen enough
        finish_output()
    finally:
        finish_output()


def _main(args: Sequence[str]) -> None:
    if not args or args[0] in {"-h", "--help"}:
        sys.stdout.write(overview())
        return
    if list(args) in (["fit", "--help"], ["fit", "-h"]):
        sys.stdout.write(fit_help())
        return
    if "--version" in args:
        sys.stdout.write(f"{versions()}\n")
        return
    _quieten()
    try:
        with Interrupts(), explained(lambda: f"Run it again: python -m sphere_pl {shlex.join(args)}"):
            run(args)
    except UserError as error:
        _give_up(str(error), error.status)
    except (KeyboardInterrupt, RunInterrupted) as error:
        _stop(error)
    except OSError as error:
        if error.errno not in _DISK_TROUBLE:
            raise
        _give_up(
            f"{error.filename or 'A file of the run'} could not be opened or written: {error.strerror}. Free "
            "disk space, correct the path, or choose another folder with --run_dir, and run the command again."
        )


def overview() -> str:
    """All commands, each with a line about it."""
    lines = [f"  {name:<10} {about}\n" for name, (_, about) in COMMANDS.items()]
    return (
        f"usage: {program()} COMMAND ...\n\n{''.join(lines)}\n"
        "COMMAND --help says more, --version says which releases are at work.\n"
    )


def fit_help() -> str:
    """The help of `fit` on one screen, as its parser writes it: to ask that takes the seconds of a run's imports."""
    text = Path(__file__).with_name("fit_help.txt").read_text(encoding="utf-8")
    return text.replace("PROGRAM", program())


def versions() -> str:
    """This program's version and those of the libraries that it stands on; none of them is imported."""
    found = [f"{name} {version_of(name)}" for name in ("torch", "lightning", "transformers")]
    return f"sphere_pl {__version__} ({', '.join(found)}, Python {sys.version.split()[0]})"


def run(args: Sequence[str]) -> None:
    """Run one command.

    Raises:
        UserError: For a user's mistake.
    """
    name, *rest = args
    if name not in COMMANDS:
        raise UserError(_no_command(name, args))
    with doing("loading the libraries"), announced("loading libraries ...", quiet=_asks_for_quiet(rest)):
        module = importlib.import_module(COMMANDS[name][0])
    if "lightning" in sys.modules:
        _quieten_lightning()
    with doing(f"carrying out {name}"), _misconfiguration_as_user_error():
        module.main(rest)


@contextmanager
def _misconfiguration_as_user_error() -> Iterator[None]:
    """Say what Lightning found wrong as a user's mistake; its class is there if it was imported."""
    try:
        yield
    except Exception as error:
        exceptions = sys.modules.get("lightning.fabric.utilities.exceptions")
        if exceptions is None or not isinstance(error, exceptions.MisconfigurationException):
            raise
        raise UserError(str(error)) from error


def _no_command(name: str, args: Sequence[str]) -> str:
    """What is said of a first argument that is no command."""
    if name.startswith("-"):
        meant = f"Did you mean {program()} fit {shlex.join(args)}?"
    else:
        meant = did_you_mean(name, COMMANDS)
    lines = [f"There is no command {name!r}.", meant, f"The commands are {', '.join(COMMANDS)}."]
    return "\n".join(line for line in lines if line)


def _asks_for_quiet(args: Sequence[str]) -> bool:
    """Whether a command line wants no progress, as far as is known before it is parsed."""
    asks = any(arg == "--quiet" or arg.lower() == "--quiet=true" for arg in args)
    return asks or any(arg.split("=")[0] in {"-h", "--help", "--help_all", "--print_config"} for arg in args)


def _give_up(message: str, status: int = 2) -> None:
    sys.stderr.write(f"error: {message}\n")
    sys.exit(status)


def _stop(error: BaseException) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":  # one of several processes says it
        with suppress(OSError):  # the terminal may be closed
            sys.stderr.write(f"\n{interrupted(error)}\n")
    sys.exit(128 + getattr(error, "signum", signal.SIGINT))


def _quieten() -> None:
    """Leave out remarks of libraries that do not concern an editing run, for the rest of the process."""
    # What one process of several warns of, all would.
    level = logging.ERROR if os.environ.get("LOCAL_RANK", "0") != "0" else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s")
    # The hub's retries: what could not be had is said once, at the end.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    ignore_remarks()


def ignore_remarks() -> None:
    """Leave out warnings of libraries that do not concern an editing run."""
    # Every process measures and logs the same numbers.
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")
    # The edits' data loader yields ready batches; workers would only copy strings.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    # The language model is in eval mode all through a fit, on purpose.
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")
    # lightning 2.6 asks torch 2.13 in a way that is about to change.
    warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)


def _quieten_lightning() -> None:
    """Leave out Lightning's remarks on seeds, devices and products; its import sets its levels, so call this after."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning").propagate = False  # it has a handler of its own: the root's would say all twice
    # Says that a process of the run died, just before it ends the others.
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
