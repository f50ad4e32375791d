"""Arguments that the commands on a saved run share."""

import argparse
from pathlib import Path

import yaml

from sphere_pl.errors import UserError
from sphere_pl.history.by_hand import newest_run, warn_of_session
from sphere_pl.history.saved import LoadOptions
from sphere_pl.storage.files import expanded


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the run folder."""
    parser.add_argument("--run_dir", type=Path, required=True, help="folder of the run")


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """Add how the base model is found."""
    group = parser.add_argument_group("base model")
    group.add_argument("--model", help="hub id or folder, if it is no longer where the run found it")
    group.add_argument("--cache_dir", help="where the embedded model is kept")
    group.add_argument("--trust_remote_code", action="store_true", help="let code from the hub run")
    group.add_argument("--device", help="where to compute; an accelerator if there is one")
    group.add_argument(
        "--device_map", type=yaml.safe_load, help="how to spread it over devices, as fit's --model.device_map"
    )


def load_options(given: argparse.Namespace) -> LoadOptions:
    """What `add_load_arguments` found."""
    return LoadOptions(given.model, given.cache_dir, given.trust_remote_code, given.device, given.device_map)


def run_folder(given: argparse.Namespace) -> Path:
    """The run folder that was named; the newest run of an editing session, if that is named.

    Raises:
        UserError: If it is no folder.
    """
    folder = Path(given.run_dir)
    if not folder.is_dir():  # a folder may be called `~`
        folder = expanded(folder)
    if not folder.is_dir():
        raise UserError(
            f"--run_dir={given.run_dir} is no folder. Give the folder of a run, such as runs/<time>-<name>."
        )
    warn_of_session(folder)
    return newest_run(folder)
