"""The unedited and the edited model of a saved run, one after the other in one place."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from sphere_pl.commands.arguments import add_load_arguments, load_options, run_folder
from sphere_pl.data.request import EditRequest
from sphere_pl.errors import UserError
from sphere_pl.evaluation.fact_list import from_header, give_facts
from sphere_pl.history.log import LOG_FILE
from sphere_pl.history.saved import BaseModel, SavedRun
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.run.checkpoints import newest_checkpoint
from sphere_pl.storage.files import expanded

_NEWEST = ("last",)


class State(NamedTuple):
    """A saved run and the weights of it that were asked for.

    Attributes:
        run: The run.
        base: Its model, unedited until `edit` is called.
        weights: The edited matrices, float32 `[d_out, d_in]`, by name.
        edits: How many requests of the stream they have seen.
    """

    run: SavedRun
    base: BaseModel
    weights: dict[str, Tensor]
    edits: int

    @property
    def lm(self) -> LanguageModel:
        """The language model."""
        return self.base.lm

    @property
    def requests(self) -> list[EditRequest]:
        """The requests that have been edited in, in order."""
        return self.run.history.requests[: self.edits]

    def edit(self) -> None:
        """Turn the unedited model into the edited one."""
        self.base.write(self.weights)
        read_edits(self.lm, self.run, self.requests)


def read_edits(lm: LanguageModel, run: SavedRun, requests: Sequence[EditRequest]) -> None:
    """Let the model read some edits of a run whose method edits no weight; nothing for others."""
    give_facts(lm, requests, from_header(run.history.header.retrieval), run.chat)


def add_state_arguments(parser: argparse.ArgumentParser) -> None:
    """Add which run and which of its states."""
    parser.add_argument("--run_dir", type=Path, help="folder of the run; found above --ckpt_path if left out")
    parser.add_argument("--ckpt_path", help="a checkpoint, or `last`; the weights at the end of the run if left out")
    parser.add_argument("--at", type=int, metavar="N", help="the state after N edits")
    add_load_arguments(parser)


def load_state(given: argparse.Namespace) -> State:
    """Load what `add_state_arguments` found.

    Raises:
        UserError: If there is no such run, checkpoint or state.
    """
    if given.at is not None and given.ckpt_path is not None:
        raise UserError(f"--at {given.at} and --ckpt_path {given.ckpt_path} name two states. Give one of them.")
    if given.run_dir is None and given.ckpt_path in (None, *_NEWEST):
        raise UserError("Name the run with --run_dir <folder>, or one of its checkpoints with --ckpt_path <file>.")
    folder = run_folder(given) if given.run_dir is not None else _run_above(Path(given.ckpt_path))
    checkpoint = _checkpoint(given.ckpt_path, folder) if given.ckpt_path is not None else None
    run = SavedRun.open(folder)
    number = run.history.number_at(given.at)
    base = run.load_base(load_options(given))
    if checkpoint is not None:
        return State(run, base, *run.checkpoint(checkpoint, base))
    edits = run.history.entries[number - 1].edits if number else 0
    return State(run, base, run.weights(base, given.at), edits)


def _run_above(checkpoint: Path) -> Path:
    for folder in expanded(checkpoint).absolute().parents:
        if (folder / LOG_FILE).is_file():
            return folder
    raise UserError(
        f"--ckpt_path={checkpoint} lies in no run folder: no folder above it holds {LOG_FILE}. Name it with --run_dir."
    )


def _checkpoint(named: str, folder: Path) -> Path:
    """The checkpoint's file; for `last` the newest one in the run folder."""
    if named in _NEWEST and not Path(named).is_file():
        # Those that the run keeps for itself, else those that a ModelCheckpoint left.
        others = sorted((folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
        found = newest_checkpoint(folder / "checkpoints") or (others[-1] if others else None)
        if found is None:
            raise UserError(f"--ckpt_path={named}: {folder} holds no checkpoint. Leave it out for the run's end.")
        return found
    path = expanded(named)
    if not path.is_file():
        raise UserError(f"--ckpt_path={named} is no file. Give a checkpoint, or leave it out for the run's end.")
    return path
