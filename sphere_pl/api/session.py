"""What a report keeps of its call, so that another call can continue it: `sphere_pl.edit(report, more_facts)`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sphere_pl.api.settings import Asked
from sphere_pl.data.request import EditRequest
from sphere_pl.errors import UserError
from sphere_pl.history.continuation import Earlier
from sphere_pl.history.entries import sums_of


class Session(NamedTuple):
    """A model in memory with the edits of one call, or of several.

    Attributes:
        model: The edited model.
        tokenizer: Its tokenizer.
        asked: The arguments of the call.
        unedited: The edited matrices as they were before the first edit, in the model's layout and type, by name.
        sums: What the edited ones are recognised by.
        weights: The float32 matrices that editing continues with, `[d_out, d_in]`, by name.
        kept: Random states, callbacks' states and the memory of earlier keys; see `Handover`.
        requests: The edits, in their order.
        name: The model's name in the first call, by which settings of its own are known.
    """

    model: PreTrainedModel
    tokenizer: Any
    asked: Asked
    unedited: dict[str, Tensor]
    sums: dict[str, tuple[float, float]]
    weights: dict[str, Tensor]
    kept: dict[str, Any]
    requests: list[EditRequest]
    name: str

    @property
    def earlier(self) -> Earlier:
        """The edits, for a run that keeps no folder."""
        return Earlier("the report", self.requests, weights=self.weights, kept=self.kept)


def merged(before: Asked, now: Asked) -> Asked:
    """The arguments of a further call: those of the one before, unless said otherwise.

    Raises:
        UserError: If the further call shall keep a folder, and the one before has none.
    """
    if now.run_dir is not None and before.run_dir is None:
        raise UserError(
            f"`run_dir={str(now.run_dir)!r}`: the call that is continued kept no run folder, with whose log this one's "
            "would begin. Give that call a `run_dir` too, or leave it out."
        )
    settings = {**(before.settings or {}), **(now.settings or {})}
    kept = {
        name: getattr(before, name) if getattr(now, name) in (None, ()) else getattr(now, name)
        for name in ("method", "layers", "batch_size", "projection", "config")
    }
    return now._replace(**kept, settings=settings)


def check_unchanged(session: Session) -> None:
    """Refuse a model that something else has changed since.

    Raises:
        UserError: If an edited matrix is not as the edits have left it.
    """
    if stored_sums(session.model, session.unedited) != session.sums:
        raise UserError(
            "The model's edited matrices are not as the report's edits have left them: something has changed them "
            "since. Edit the model as it is with edit(model, tokenizer, facts), which does not protect earlier edits."
        )


def stored_sums(model: PreTrainedModel, names: Mapping[str, Any] | Sequence[str]) -> dict[str, tuple[float, float]]:
    """What matrices of a model are recognised by."""
    return sums_of({name: model.get_parameter(name).detach() for name in names})


@contextmanager
def unedited(model: PreTrainedModel, session: Session) -> Iterator[None]:
    """Start from the unedited model; it becomes the edited one again if what is done inside does not end well."""
    before = {name: model.get_parameter(name).detach().to("cpu", copy=True) for name in session.unedited}
    _put(model, session.unedited)
    try:
        yield
    except BaseException:
        _put(model, before)
        raise


@torch.no_grad()
def _put(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        model.get_parameter(name).copy_(tensor)
