"""An exported run whose method edits no weight: its facts as a list, with how they are read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sphere_pl.data.chat import ChatSettings
from sphere_pl.data.request import EditRequest
from sphere_pl.errors import UserError
from sphere_pl.evaluation.fact_list import from_header
from sphere_pl.history.entries import Header, request_of
from sphere_pl.methods.retrieval import Retrieval

FACTS = "facts.json"


class FactFolder(NamedTuple):
    """What such a folder holds.

    Attributes:
        base_model: Hub id or name of the model that reads the facts.
        revision: Branch, tag or commit of a hub model.
        retrieval: How it reads them.
        chat: In which forms it is asked.
        requests: The facts.
    """

    base_model: str
    revision: str | None
    retrieval: Retrieval | None
    chat: ChatSettings
    requests: list[EditRequest]


def is_fact_folder(folder: Path) -> bool:
    """Whether a folder holds a list of facts in the place of a model."""
    return (folder / FACTS).is_file()


def write_facts(
    folder: Path, header: Header, base_model: str, requests: Sequence[Mapping[str, Any]], chat: ChatSettings
) -> None:
    """Write the list into an existing folder.

    Args:
        folder: The folder.
        header: The run's, whose `retrieval` says how the facts are read.
        base_model: Hub id or name of the base model.
        requests: The facts, as logged.
        chat: In which forms they are asked.
    """
    held: dict[str, Any] = {"base_model": base_model, "revision": header.revision, "retrieval": header.retrieval}
    held |= {"chat": chat._asdict(), "facts": list(requests)}
    (folder / FACTS).write_text(json.dumps(held, indent=1, ensure_ascii=False), encoding="utf-8")


def read_facts(folder: Path) -> FactFolder:
    """Read such a folder.

    Raises:
        UserError: If its list is not what `export` writes.
    """
    path = folder / FACTS
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        requests = [request_of(each) for each in held["facts"]]
        chat = ChatSettings(**held["chat"])
        return FactFolder(held["base_model"], held["revision"], from_header(held["retrieval"]), chat, requests)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is no list of facts that `python -m sphere_pl export` wrote ({type(error).__name__}: {error}). "
            "Export the run again."
        ) from error
