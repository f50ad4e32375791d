"""The stream of edit requests as a LightningDataModule, from a file or from facts that a program holds."""

from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from sphere_pl.data.formats import Format
from sphere_pl.data.formats.jsonl import read_jsonl
from sphere_pl.data.records import Record
from sphere_pl.data.request import EditRequest, shorten
from sphere_pl.data.stream import BUILT_IN, EditLoader, EditStream, edits_of
from sphere_pl.errors import UserError

__all__ = ["BUILT_IN", "EditDataModule", "EditLoader", "Fact", "FactList", "built_in_facts", "fact_list"]

Fact = Mapping[str, Any] | EditRequest


class EditDataModule(EditStream, L.LightningDataModule):  # type: ignore[misc] # its `name` is a class's default there
    """Edit requests from the built-in fact set, a local file or the hub.

    Arguments and errors are those of `EditStream`.
    """

    def val_dataloader(self) -> DataLoader[Any]:
        """What has been edited so far, which the editor knows."""
        if self.trainer is None:
            raise RuntimeError("The edited requests are known inside a fit only.")
        loader: DataLoader[Any] = self.trainer.lightning_module.val_dataloader()
        return loader


def built_in_facts() -> list[EditRequest]:
    """All built-in facts."""
    return EditDataModule().everything()


class FactList(EditDataModule):
    """Edit requests that a program holds, in the fields of format `jsonl` or as `EditRequest`s.

    Args:
        facts: The facts; the position in the list is what messages name.
        **settings: Those of `EditDataModule`; its `name` and `path` say where the facts would be read again.

    Raises:
        UserError: If it is no list of facts, or an empty one.
    """

    def __init__(self, facts: Iterable[Fact], **settings: Any) -> None:
        super().__init__(**settings)
        self.facts = fact_list(facts)

    def readable(self, stop: bool = False) -> tuple[list[EditRequest], list[UserError]]:
        """Read and check the facts."""
        places = (Record(f"facts[{number}]", number, {}) for number in range(len(self.facts)))
        return edits_of(places, Format(lambda place: [_read_fact(self.facts[place.number], place)]), stop)


def fact_list(facts: Iterable[Fact]) -> list[Fact]:
    """The facts as a list.

    Raises:
        UserError: If they are something else, or none.
    """
    if isinstance(facts, str | bytes | Mapping | EditRequest) or not isinstance(facts, Iterable):
        raise UserError(
            f"`facts` is {type(facts).__name__} ({shorten(facts, 40)}), expected a list of facts such as "
            "[{'prompt': 'The capital of France is', 'subject': 'France', 'target': 'Lyon'}]."
        )
    listed = list(facts)
    if not listed:
        raise UserError("`facts` is empty: there is nothing to edit. Give a list of at least one fact.")
    return listed


def _read_fact(fact: object, place: Record) -> EditRequest:
    if isinstance(fact, EditRequest):
        return fact._replace(source=place.where)
    if not isinstance(fact, Mapping) or not all(isinstance(name, str) for name in fact):
        raise UserError(
            f"{place.where} is {type(fact).__name__} ({shorten(fact, 40)}), expected a dictionary with prompt, subject "
            "and target, or an EditRequest."
        )
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in fact.items()}
    return read_jsonl(place._replace(fields=fields))[0]
