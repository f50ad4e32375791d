"""`python -m sphere_pl diff`: which matrices changed and how much."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sphere_pl.commands.arguments import add_load_arguments, load_options
from sphere_pl.commands.parsers import Parser
from sphere_pl.errors import UserError
from sphere_pl.history.by_hand import newest_run
from sphere_pl.history.log import LOG_FILE
from sphere_pl.history.low_rank import ROUNDING
from sphere_pl.history.saved import LoadOptions, SavedRun, own_options
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.loading import load_language_model
from sphere_pl.process.console import say
from sphere_pl.process.devices import default_device
from sphere_pl.storage.files import expanded
from sphere_pl.text import numbers

_WIDTH = 112  # a name of a matrix and six numbers; narrower terminals wrap it


class Difference(NamedTuple):
    """How one matrix differs.

    Attributes:
        name: Hugging Face name of the parameter.
        shape: `[d_out, d_in]`.
        frobenius: Frobenius norm of the change.
        relative: The same over the norm of the first matrix.
        spectral: Largest singular value of the change.
        rank: Singular values above the rounding of float32, that is four epsilon times the second matrix' norm.
        largest_row: The output neuron whose row moved furthest.
        largest_row_norm: How far.
    """

    name: str
    shape: tuple[int, int]
    frobenius: float
    relative: float
    spectral: float
    rank: int
    largest_row: int
    largest_row_norm: float


class Side(NamedTuple):
    """One of the two models that are compared.

    Attributes:
        label: How to call it.
        lm: The model, unedited where it is a run's.
        edited: Matrices that stand in place of the model's, float32 `[d_out, d_in]`, by name.
    """

    label: str
    lm: LanguageModel
    edited: dict[str, Tensor]

    @property
    def names(self) -> set[str]:
        """All matrices."""
        return {name for name, parameter in self.lm.model.named_parameters() if parameter.ndim == 2}

    def matrix(self, name: str) -> Tensor:
        """A matrix as float32 `[d_out, d_in]` in CPU memory; those that are not edited in the model's layout."""
        if name in self.edited:
            return self.edited[name]
        stored: Tensor = self.lm.model.get_parameter(name).detach().float().cpu()
        return stored.T if name in self._transposed() else stored

    def _transposed(self) -> set[str]:
        sites = self.lm.sites(list(range(self.lm.n_layers)))
        return {site.name for site in sites if site.fan_in_fan_out}


def main(args: Sequence[str]) -> None:
    """Compare a run with its base, or two runs or models with each other.

    Raises:
        UserError: If one of them cannot be read.
    """
    given = _parser().parse_args(args)
    sides = [*given.sides, *([given.run_dir] if given.run_dir else [])]
    if not 1 <= len(sides) <= 2:
        raise UserError("Give one run folder, or two of: run folder, model folder, hub id.")
    options = load_options(given)
    if len(sides) == 1:
        first, second = _run_and_base(_folder(sides[0]), given.at, options)
    else:
        first, second = (_side(each, given.at, options) for each in sides)
    found = differences(first, second, torch.device(options.device) if options.device else default_device())
    if given.json:
        sys.stdout.write(json.dumps([each._asdict() for each in found], indent=1) + "\n")
    else:
        console = Console()
        show(found, f"{first.label} -> {second.label}", Console(width=max(_WIDTH, console.width)))


def _parser() -> Parser:
    parser = Parser("diff", description="Show which matrices changed and how much.")
    parser.add_argument("sides", nargs="*", help="one run folder, or two of: run folder, model folder, hub id")
    parser.add_argument("--run_dir", help="the same as naming one run folder")
    parser.add_argument("--at", type=int, metavar="N", help="a run's state after N edits; its end if left out")
    parser.add_argument("--json", action="store_true", help="write JSON to standard output")
    add_load_arguments(parser)
    return parser


def _run_and_base(folder: Path, at: int | None, options: LoadOptions) -> tuple[Side, Side]:
    run = SavedRun.open(folder)
    run.history.number_at(at)
    base = run.load_base(options)
    return Side(run.history.header.model, base.lm, {}), Side(str(folder), base.lm, run.weights(base, at))


def _folder(named: str) -> Path:
    """A folder may be called `~`, and that of an editing session stands for its newest run."""
    return newest_run(Path(named) if Path(named).is_dir() else expanded(named))


def _side(named: str, at: int | None, options: LoadOptions) -> Side:
    folder = _folder(named)
    if (folder / LOG_FILE).is_file():
        return _run_and_base(folder, at, options)[1]
    with own_options():
        lm = load_language_model(named, trust_remote_code=options.trust_remote_code, cache_dir=options.cache_dir)
    return Side(named, lm, {})


def differences(first: Side, second: Side, device: torch.device) -> list[Difference]:
    """Compare all matrices of two models; those that are equal are left out.

    Raises:
        UserError: If they do not have the same matrices.
    """
    if first.names != second.names:
        odd = sorted(first.names ^ second.names)[0]
        raise UserError(
            f"{first.label} and {second.label} are different models: only one of them has {odd}. Compare two states of "
            "one model."
        )
    names = [name for name, _ in first.lm.model.named_parameters() if name in first.names]
    if first.lm is second.lm:  # one base: nothing else can differ
        names = [name for name in names if name in first.edited or name in second.edited]
    return [found for name in names for found in _compare(name, first.matrix(name), second.matrix(name), device)]


def _compare(name: str, before: Tensor, after: Tensor, device: torch.device) -> Iterator[Difference]:
    if before.shape != after.shape:
        raise UserError(
            f"{name} has shape {list(before.shape)} in one model and {list(after.shape)} in the other. Compare two "
            "states of one model."
        )
    change = (after - before).to(device)
    if not bool(change.any()):
        return
    norm = float(change.norm())
    values = _singular_values(change)
    rows = change.norm(dim=1)
    largest = int(rows.argmax())
    noise = ROUNDING * float(after.norm())
    yield Difference(
        name=name,
        shape=(change.shape[0], change.shape[1]),
        frobenius=norm,
        relative=norm / (float(before.norm()) or 1.0),
        spectral=float(values[0]),
        rank=int((values > noise).sum()),
        largest_row=largest,
        largest_row_norm=float(rows[largest]),
    )


def _singular_values(change: Tensor) -> Tensor:
    """Singular values, descending, from the smaller Gram matrix in float64; NaN for what is not finite."""
    if not bool(torch.isfinite(change).all()):
        return torch.full((1,), torch.nan)
    wide = change.double()
    gram = wide @ wide.T if change.shape[0] <= change.shape[1] else wide.T @ wide
    squares: Tensor = torch.linalg.eigvalsh(gram)
    return squares.clamp_min(0).sqrt().flip(0)


def show(found: Sequence[Difference], title: str, console: Console) -> None:
    """Print the table."""
    if not found:
        say(f"{title}: no matrix differs", console)
        return
    say(title, console)
    table = Table()
    for column in ("matrix", "shape", "Frobenius", "relative", "spectral", "rank", "largest row"):
        table.add_column(column, justify="left" if column == "matrix" else "right", overflow="fold")
    for each in found:
        table.add_row(
            each.name,
            f"{each.shape[0]} x {each.shape[1]}",
            numbers.plain(each.frobenius, 4),
            numbers.percent(each.relative, digits=3),
            numbers.plain(each.spectral, 4),
            str(each.rank),
            f"{each.largest_row} ({numbers.plain(each.largest_row_norm)})",
        )
    console.print(table)
