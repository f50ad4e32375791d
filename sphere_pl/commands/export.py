"""`python -m sphere_pl export --run_dir R`: the edited model as a Hugging Face folder, or its edits alone."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sphere_pl.commands.arguments import add_load_arguments, add_run_arguments, load_options, run_folder
from sphere_pl.commands.export_folders import DELTA, Form, choose, write_form, write_whole
from sphere_pl.commands.parsers import Parser
from sphere_pl.errors import UserError
from sphere_pl.history.by_hand import lasting
from sphere_pl.history.left_out import check_without
from sphere_pl.history.saved import SavedRun
from sphere_pl.text.names import quoted
from sphere_pl.text.numbers import counted


def main(args: Sequence[str]) -> None:
    """Export a run.

    Raises:
        UserError: If the run folder, the state asked for or the place to write to is not what it must be.
    """
    given = _parser().parse_args(args)
    _check(given)
    run = SavedRun.open(run_folder(given))
    if run.history.header.retrieval is not None and (given.adapter or given.delta_only):
        raise UserError(
            f"{run.folder} edits no weight ({run.history.header.method}): there is no adapter or delta. Leave "
            "--adapter and --delta_only out; what is exported is its list of facts."
        )
    target = _target(given, run)
    last = run.history.number_at(given.at)  # a mistake ends here, before anything is loaded
    if given.without:
        check_without(run, given.without, last)
    base = run.load_base(load_options(given))
    chosen = choose(run, base, given.at, given.without)
    form, rank = _form(given), given.adapter_rank
    notes = write_whole(target, lambda folder: write_form(folder, run, base, chosen, form, rank))
    held = counted(len(chosen.requests), f"edit of {run.folder} is", f"edits of {run.folder} are")
    sys.stdout.write(f"{held} in {target}\n")
    sys.stdout.write("".join(f"{note}\n" for note in notes))
    if given.push_to_hub:
        sys.stdout.write(f"Pushed to {push(target, given.push_to_hub, private=not given.public)}\n")


def _parser() -> Parser:
    parser = Parser("export", description="Write a run's edited model.")
    add_run_arguments(parser)
    parser.add_argument(
        "--at", type=int, metavar="N", help="the state after N edits of the stream; the end if left out"
    )
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        metavar="CASE_OR_SUBJECT",
        help="solve the batches again without these edits",
    )
    parser.add_argument("--out", type=Path, help="folder to write; inside the run folder if left out")
    parser.add_argument("--delta_only", action="store_true", help=f"write {DELTA} instead of the whole model")
    parser.add_argument("--adapter", action="store_true", help="write a PEFT LoRA adapter instead of the whole model")
    parser.add_argument(
        "--adapter_rank", type=int, metavar="K", help="the best part of rank K instead of all of the change"
    )
    parser.add_argument("--push_to_hub", metavar="ID", help="also upload it to this hub repository")
    parser.add_argument("--public", action="store_true", help="a repository made by --push_to_hub is public")
    add_load_arguments(parser)
    return parser


def _check(given: argparse.Namespace) -> None:
    if given.adapter and given.delta_only:
        raise UserError("--adapter and --delta_only name two forms of the edits. Give one of them.")
    if given.adapter_rank is not None and (not given.adapter or given.adapter_rank < 1):
        raise UserError(f"--adapter_rank={given.adapter_rank} must be at least 1, and belongs to --adapter.")


def _form(given: argparse.Namespace) -> Form:
    return "adapter" if given.adapter else "delta" if given.delta_only else "model"


def _target(given: argparse.Namespace, run: SavedRun) -> Path:
    """The folder to write, which must be new or empty."""
    if given.out:
        target = Path(given.out)
    else:
        at = "" if given.at is None else f"-at-{given.at}"
        name = "export" if _form(given) == "model" else _form(given)
        target = lasting(run.folder) / f"{name}{at}{'-without' if given.without else ''}"
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not empty. Name another folder with --out, or delete it first.")
    return target


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Upload a folder to the hub, with the user's own login.

    Args:
        folder: What to upload.
        repository: `name` or `owner/name`; made if need be.
        private: Whether a new repository is private; one that exists stays as it is.

    Returns:
        Where it can be seen.

    Raises:
        UserError: If the name is no repository id, or the hub refuses.
    """
    from httpx import HTTPError  # what huggingface_hub asks with
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    try:
        api = HfApi()
        made = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Edited model")
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, HTTPError, OSError) as error:
        raise UserError(
            f"The hub did not take {repository!r}: {str(error).strip().splitlines()[0]} The export itself is whole, in "
            f"{folder}. Log in with `hf auth login`, then upload it with `hf upload {repository} {quoted(folder)}`."
        ) from error
    return str(made)
