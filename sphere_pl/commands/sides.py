"""A model before and after its edits, in one place: a saved run's, an exported folder's or an adapter's."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torch import Tensor

from sphere_pl.commands.which_run import State
from sphere_pl.data.request import EditRequest
from sphere_pl.errors import UserError
from sphere_pl.evaluation.fact_list import give_facts
from sphere_pl.history.adapter import adapted, base_of, is_adapter
from sphere_pl.history.fact_folder import is_fact_folder, read_facts
from sphere_pl.history.saved import LoadOptions, own_options
from sphere_pl.model.embedded import EMBEDDED_HUB_ID, EMBEDDED_MODEL
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.loading import Dtype, load_language_model
from sphere_pl.process.devices import default_device
from sphere_pl.text.usage import announced


class Sides:
    """A language model that is turned from the unedited into the edited one and back.

    Args:
        lm: The model.
        unedited: What its edited parameters were before, by name; None if that is not known.
        edited: What they are after, in the model's layout and type; and it reads what it reads now.
    """

    def __init__(self, lm: LanguageModel, unedited: Mapping[str, Tensor] | None, edited: Mapping[str, Tensor]) -> None:
        self.lm, self._unedited, self._edited = lm, unedited, edited
        self._reading = lm.reading

    @property
    def has_unedited(self) -> bool:
        """Whether the unedited model is known."""
        return self._unedited is not None

    @torch.no_grad()
    def turn(self, *, edited: bool) -> None:
        """Become the edited or the unedited model."""
        for name, value in (self._edited if edited else self._unedited or {}).items():
            self.lm.model.get_parameter(name).copy_(value)
        self.lm.reading = self._reading if edited else None


def sides_of_run(state: State) -> Sides:
    """A saved run's model, as it is loaded: unedited."""
    names = [site.name for site in state.base.sites]
    unedited = _copies(state.lm, names)
    state.edit()
    return Sides(state.lm, unedited, _copies(state.lm, names))


def load_exported(folder: Path, options: LoadOptions) -> Sides:
    """Load what `export` wrote, with the base model that `--model`, its card or its configuration names.

    Raises:
        UserError: If one of them cannot be loaded, or belongs to another base model.
    """
    if not folder.is_dir():
        raise UserError(f"--folder={folder} is no folder. Give one that `python -m sphere_pl export` wrote.")
    if is_adapter(folder):
        return _load_adapter(folder, options)
    if is_fact_folder(folder):
        return _load_facts(folder, options)
    edited = load_named(str(folder), options)
    name = options.model or _card(folder).get("base_model")
    if name is None:
        return Sides(edited, None, {})
    dtype = str(edited.dtype).removeprefix("torch.")
    base = dict(load_named(_own_name(name), options, dtype=dtype).model.named_parameters())
    after = dict(edited.model.named_parameters())
    if base.keys() != after.keys() or any(base[each].shape != after[each].shape for each in base):
        raise UserError(f"{name} is not the model that {folder} was made from. Name that one with --model.")
    changed = [each for each in after if not torch.equal(base[each].to(after[each]), after[each])]
    return Sides(edited, {each: base[each].detach() for each in changed}, _copies(edited, changed))


def _load_adapter(folder: Path, options: LoadOptions) -> Sides:
    named, revision = base_of(folder)
    name = options.model or _own_name(named)
    if not name:
        raise UserError(f"{folder} does not name its base model. Name it with --model <hub id or folder>.")
    lm = load_named(name, options, revision=None if options.model else revision)
    matrices = adapted(folder, dict(lm.model.named_parameters()))
    edited = {each: value.to(lm.model.get_parameter(each)) for each, value in matrices.items()}
    return Sides(lm, _copies(lm, matrices), edited)


def _load_facts(folder: Path, options: LoadOptions) -> Sides:
    held = read_facts(folder)
    name = options.model or _own_name(held.base_model)
    lm = load_named(name, options, revision=None if options.model else held.revision)
    give_facts(lm, held.requests, held.retrieval, held.chat)
    return Sides(lm, {}, {})


def load_named(name: str, options: LoadOptions, dtype: str = "auto", revision: str | None = None) -> LanguageModel:
    """Load a model by its name.

    Raises:
        UserError: If it is not to be had, or cannot be edited.
    """
    with announced(f"loading {name} ..."), own_options():
        lm = load_language_model(
            name,
            dtype=cast(Dtype, dtype),
            revision=revision,
            trust_remote_code=options.trust_remote_code,
            cache_dir=options.cache_dir,
            device_map=options.device_map,
        )
    return lm.to(options.device or default_device())


def _own_name(name: str) -> str:
    """The embedded model comes with this program, whatever the hub calls it."""
    return EMBEDDED_MODEL if name == EMBEDDED_HUB_ID else name


def _copies(lm: LanguageModel, names: Iterable[str]) -> dict[str, Tensor]:
    return {name: lm.model.get_parameter(name).detach().clone() for name in names}


def _card(folder: Path) -> dict[str, Any]:
    """The front matter of a folder's README.md."""
    try:
        front = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---")[1])
    except (OSError, IndexError, ValueError, yaml.YAMLError):
        return {}
    return front if isinstance(front, dict) else {}


def listed_edits(folder: Path) -> list[EditRequest]:
    """The edits that an exported folder says it holds."""
    try:
        listed = json.loads((folder / "edits.json").read_text(encoding="utf-8"))
        return [EditRequest(**each) for each in listed]
    except (OSError, ValueError, TypeError):
        return []
