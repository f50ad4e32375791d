"""What a method knows of each matrix before the first batch, and where that need not be found out again."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sphere_pl.data.request import EditRequest
from sphere_pl.editing.diagnosis import diagnose
from sphere_pl.editing.kept_moments import corpus_identity, second_moments
from sphere_pl.editing.kept_states import arguments_of, kept_state
from sphere_pl.editing.moments import SecondMoment, StatisticsSettings
from sphere_pl.editing.states import MethodStates, Offload
from sphere_pl.methods.base import Method, State
from sphere_pl.model.families import EditSite
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.process.failures import doing
from sphere_pl.progress import Track


class KnownStates(NamedTuple):
    """States as they are before any batch, kept for another run over the same unedited model.

    Attributes:
        layers: Whose matrices they belong to.
        method: What made them.
        states: One for each matrix.
    """

    layers: list[int]
    method: Method
    states: list[State]

    def fits(self, sites: Sequence[EditSite], method: Method) -> bool:
        """Whether they are of these matrices, and of a method of the same class."""
        return self.layers == [site.layer for site in sites] and type(self.method) is type(method)


class Prepared:
    """What runs on one unedited model find out but once: the method's states before any batch, contexts, keys.

    Whoever edits a model again and again in one process gives it to every run. A run of its own keeps nothing: of some
    methods this is as much again as they need.
    """

    def __init__(self) -> None:
        self._states: tuple[list[Any], list[State], dict[str, dict[str, float]]] | None = None
        self._contexts: tuple[list[Any], list[str]] | None = None
        self._directions: tuple[list[Any], dict[EditRequest, Tensor]] = ([], {})

    def states(
        self,
        rests_on: list[Any],
        saved: Collection[str],
        prepare: Callable[[], tuple[MethodStates, dict[str, dict[str, float]]]],
        renew: Callable[[list[State]], MethodStates],
    ) -> tuple[MethodStates, dict[str, dict[str, float]]]:
        """The states and their diagnosis, prepared if they rest on something else than those that are known.

        Args:
            rests_on: The model, the method and all settings that they depend on.
            saved: Names of the tensors that change while editing, of which copies are kept.
            prepare: Prepares them.
            renew: Puts known ones into use.
        """
        if self._states is None or self._states[0] != rests_on:
            self._states = None  # its memory, before as much is taken again
            found, diagnosis = prepare()
            self._states = (rests_on, _apart(found, saved), diagnosis)
            return found, diagnosis
        _, known, diagnosis = self._states
        return renew(_apart(known, saved)), diagnosis

    def contexts(self, rests_on: list[Any], sample: Callable[[], list[str]]) -> list[str]:
        """Context templates, sampled if they rest on something else than those that are known."""
        if self._contexts is None or self._contexts[0] != rests_on:
            self._contexts = (rests_on, sample())
        return list(self._contexts[1])

    def directions(
        self, rests_on: list[Any], requests: Sequence[EditRequest], find: Callable[[Sequence[EditRequest]], Tensor]
    ) -> Tensor:
        """Directions of keys, `[n, d_in]`; found for those requests that are not known."""
        known = self._directions[1] if self._directions[0] == rests_on else {}
        new = [request for request in dict.fromkeys(requests) if request not in known]
        known = {**known, **dict(zip(new, find(new), strict=True))} if new else known
        self._directions = (rests_on, {request: known[request] for request in requests})
        return torch.stack([known[request] for request in requests])


def _apart(states: Sequence[State], saved: Collection[str]) -> list[State]:
    """States with copies of what changes; all else is shared."""
    return [{name: each.clone() if name in saved else each for name, each in state.items()} for state in states]


def states_rest_on(model: str, method: Method, settings: StatisticsSettings, sites: Sequence[EditSite]) -> list[Any]:
    """What the method's states before the first batch depend on, to be compared with that of another run."""
    known = arguments_of(method)
    arguments = {"": object()} if known is None else known  # what cannot be compared is like nothing else
    needed = [settings, corpus_identity(settings)] if method.needs_second_moment else []
    return [model, type(method), arguments, [(site.name, site.stored.device) for site in sites], *needed]


class StatePreparation(NamedTuple):
    """All that a method's states before the first batch are found from.

    Attributes:
        lm: The unedited language model.
        sites: The edited matrices, shallow to deep.
        weights: The same in float32, each `[d_out, d_in]`.
        method: The method.
        settings: Where second moments come from.
        offload: Where states are held.
        track: Shows progress.
    """

    lm: LanguageModel
    sites: Sequence[EditSite]
    weights: Sequence[Tensor]
    method: Method
    settings: StatisticsSettings
    offload: Offload
    track: Track

    @doing("preparing second moments and the method")
    def find(
        self, known: KnownStates | None = None, keep: bool = True
    ) -> tuple[MethodStates, dict[str, dict[str, float]]]:
        """Find out what the method knows of each matrix before the first batch.

        Args:
            known: What was prepared for another regulariser, which is taken over as far as that goes.
            keep: Whether what is found is kept on disk beside the second moments.

        Returns:
            The states, and what can be said about each matrix's statistics, by its name; see `diagnose`.
        """
        method, moments = self.method, dict[str, SecondMoment]()
        if method.needs_second_moment:
            moments = second_moments(self.lm, self.sites, self.settings, self.track, self.offload.home)
        states, diagnosis = [], {}
        bar = self.track(self.sites, "what the edits keep", len(self.sites)) if moments else self.sites
        for number, site in enumerate(bar):
            moment, half, tokens = moments.pop(site.name, None) or (None, None, None)
            state = self._state(number, None if moment is None else moment.to(site.stored.device), known, keep)
            diagnosis[site.name] = diagnose(state, moment, half, method.null_space_threshold, tokens)
            states.append(self.offload.keep(state))
        return MethodStates(states, self.weights, self.offload), diagnosis

    def _state(self, number: int, moment: Tensor | None, known: KnownStates | None, keep: bool) -> State:
        """The state of one matrix, whose moment lies where the matrix does."""
        method, weight = self.method, self.sites[number].read()
        find = partial(method.initial_state, weight, moment)
        if known is not None and known.fits(self.sites, method):
            find = partial(method.state_like, known.states[number], known.method, weight, moment)
        return kept_state(method, weight, moment, self.settings.cache_dir, find) if keep else find()

    def find_once(
        self, model_hash: str, prepared: Prepared | None, known: KnownStates | None
    ) -> tuple[MethodStates, dict[str, dict[str, float]]]:
        """The same, or what another run in this process has prepared."""
        if prepared is None:
            return self.find(known)
        rests_on = [*states_rest_on(model_hash, self.method, self.settings, self.sites), self.offload.home]
        return prepared.states(
            rests_on,
            self.method.saved,
            partial(self.find, known),
            lambda kept: MethodStates(kept, self.weights, self.offload),
        )
