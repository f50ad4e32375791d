"""`python -m sphere_pl verify RUN_DIR`: are base, edits and result what they were, and is a served folder their sum?"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sphere_pl.commands.arguments import add_load_arguments, load_options
from sphere_pl.commands.log import add_named_run, named_run
from sphere_pl.commands.parsers import Parser
from sphere_pl.errors import UserError
from sphere_pl.history.adapter import adapted, is_adapter
from sphere_pl.history.continuation import KEPT
from sphere_pl.history.entries import sums_of
from sphere_pl.history.fact_folder import is_fact_folder, read_facts
from sphere_pl.history.log import LOG_FILE, log_digest
from sphere_pl.history.low_rank import ROUNDING
from sphere_pl.history.rebuild import rebuild, restrained
from sphere_pl.history.saved import EDITED, BaseModel, SavedRun, own_options
from sphere_pl.model.loading import load_language_model
from sphere_pl.storage.checkpoint_file import read_checkpoint
from sphere_pl.text.numbers import counted

_REBUILT = 64 * ROUNDING  # of a matrix' norm: every batch of a long log adds its own rounding
_ADAPTED = 1e-5


class MismatchError(Exception):
    """Something is not what it should be."""


def main(args: Sequence[str]) -> None:
    """Check a run, and the folders that are served from it.

    Raises:
        UserError: If a check fails; all of them are said first.
    """
    given = _parser().parse_args(args)
    run = SavedRun.open(named_run(given))
    base: list[BaseModel] = []
    checks: list[tuple[str, Callable[[], str]]] = [
        ("log", lambda: _check_log(run)),
        ("batches", lambda: _check_batches(run)),
        ("base model", lambda: _check_base(base, lambda: run.load_base(load_options(given)))),
        ("weights", lambda: _check_weights(run, _loaded(base))),
    ]
    checks += [("continuation", lambda: _check_kept(run))] if (run.folder / KEPT).is_file() else []
    checks += [(folder, partial(_check_served, run, base, Path(folder))) for folder in given.served]
    failed = [name for name, problem in _carry_out(checks) if problem]
    if failed:
        raise UserError(f"{run.folder}: {', '.join(failed)} {'is' if len(failed) == 1 else 'are'} not as expected.")


def _parser() -> Parser:
    parser = Parser(
        "verify",
        description="Check the files of a run: its log, every batch, the base model, the edited weights; and whether "
        "exported folders or adapters are what they make.",
    )
    add_named_run(parser)
    parser.add_argument("--served", nargs="+", default=[], metavar="FOLDER", help="exported models or adapters")
    add_load_arguments(parser)
    return parser


def _carry_out(checks: Sequence[tuple[str, Callable[[], str]]]) -> Iterator[tuple[str, bool]]:
    for name, check in checks:
        try:
            found, problem = check(), False
        except (MismatchError, UserError) as error:
            found, problem = str(error), True
        sys.stdout.write(f"{'NOT OK' if problem else 'ok'}  {name}: {found}\n")
        yield name, problem


def _check_log(run: SavedRun) -> str:
    expected = run.results.get("edit_log_sha256")
    held = f"{counted(run.history.edits, 'edit')} in {counted(len(run.history.entries), 'batch', 'batches')}"
    if expected is None:
        return f"{held}; no checksum was kept to compare with"
    if expected != log_digest(run.folder):
        raise MismatchError(f"{LOG_FILE} has another SHA-256 than results.json says")
    return f"{held}, SHA-256 {expected[:12]}"


def _check_batches(run: SavedRun) -> str:
    files = [entry for entry in run.history.entries if entry.file is not None]
    for entry in files:
        run.history.tensors(entry)
    return f"{counted(len(files), 'file')} with the SHA-256 that the log says"


def _check_base(base: list[BaseModel], load: Callable[[], BaseModel]) -> str:
    base.append(load())
    return "has the log's fingerprint"


def _loaded(base: Sequence[BaseModel]) -> BaseModel:
    if not base:
        raise MismatchError("cannot be checked without the base model")
    return base[0]


def _check_weights(run: SavedRun, base: BaseModel) -> str:
    """Whether edited.safetensors is what base and log add up to, and what the log recognises its end by."""
    live = rebuild(base.weights, run.history, len(run.history.entries))
    made = restrained(base.weights, live, run.history.header.restraint)
    if not (run.folder / EDITED).is_file():
        return f"there is no {EDITED}; the log gives them back"
    saved = run.final()
    worst = max(_distance(saved[name], made[name]) for name in made)
    last = run.history.entries[-1] if run.history.entries else None
    same = last is None or run.history.header.restraint is not None or last.is_state(sums_of(saved))
    if worst > _REBUILT or not same:
        raise MismatchError(f"{EDITED} is not what base and log add up to (off by {worst:.1e} of a matrix' norm)")
    return f"{EDITED} is what base and log add up to, within {worst:.1e} of a matrix' norm"


def _check_kept(run: SavedRun) -> str:
    """Whether what the run left for the next one is whole, and under PRUNE holds the weights that the log ends with."""
    live = read_checkpoint(run.folder / KEPT).get("live")
    if live is not None and run.history.entries and not run.history.entries[-1].is_state(sums_of(live)):
        raise MismatchError(f"the weights in {KEPT} are not those that the log ends with")
    return f"{KEPT} is whole"


def _check_served(run: SavedRun, loaded: list[BaseModel], folder: Path) -> str:
    """Whether a folder holds what the log makes, in the type that it was exported in."""
    if is_fact_folder(folder):
        if read_facts(folder).requests != run.history.requests:
            raise MismatchError("its list of facts is not that of the log")
        return "every fact of its list is the one of the log"
    base = _loaded(loaded)
    wanted = run.weights(base)
    parameters = dict(base.lm.model.named_parameters())
    if is_adapter(folder):
        stored = {m.name: wanted[m.name].T if m.transposed else wanted[m.name] for m in run.history.header.matrices}
        found = adapted(folder, parameters)
        worst = max(_distance(found[name], each) for name, each in stored.items())
        if worst > _ADAPTED:
            raise MismatchError(f"the adapter is off by {worst:.1e} of a matrix' norm")
        return f"the adapter gives the log's weights within {worst:.1e} of a matrix' norm"
    with own_options():
        served = dict(load_language_model(str(folder), dtype="auto").model.named_parameters())
    base.write(wanted)
    different = [name for name, each in _all(served, parameters) if not torch.equal(*each)]
    base.write(base.weights)
    if different:
        these = counted(len(different), "matrix is not the one", "matrices are not those")
        raise MismatchError(f"{these} that the log makes, the first is {different[0]}")
    return "every weight is the one that the log makes, bit for bit"


def _all(served: Mapping[str, Tensor], made: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    if served.keys() != made.keys():
        raise MismatchError(f"it is another model: only one of them has {sorted(served.keys() ^ made.keys())[0]}")
    for name, weight in made.items():
        other = served[name].detach()
        if other.shape != weight.shape or other.dtype != weight.dtype:
            raise MismatchError(f"{name} has another shape or type ({list(other.shape)}, {other.dtype})")
        yield name, (other.cpu(), weight.detach().cpu())


def _distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm()) / (float(second.norm()) or 1.0)
