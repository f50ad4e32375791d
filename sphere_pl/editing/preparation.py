"""What a run settles before its first batch: its requests, contexts, pass size, method states and anchors."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from sphere_pl.data.datamodule import EditLoader
from sphere_pl.data.request import EditRequest
from sphere_pl.editing.checks import check_batch_size, check_subjects
from sphere_pl.editing.guard import diagnose
from sphere_pl.editing.key_plan import KeyPlan, check_last_block, look_at_keys, report_keys
from sphere_pl.editing.memory_estimate import Need, batch_of, capacity, fitting_tokens, need, shapes_of
from sphere_pl.editing.moments import SecondMoment, StatisticsSettings, corpus_identity, second_moments
from sphere_pl.editing.representations import SubjectStream
from sphere_pl.editing.states import MethodStates, Offload
from sphere_pl.methods.base import Method, State
from sphere_pl.model.families import EditSite
from sphere_pl.model.generation import sample_contexts
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.tokens import check_length, check_target
from sphere_pl.process.failures import doing
from sphere_pl.progress import Track

ANCHOR_RECORDS = 20  # whose target norms are measured together


def planned_requests(trainer: "L.Trainer", method: Method) -> list[EditRequest]:
    """The requests that this run will edit, after those of an interrupted or an earlier run.

    Raises:
        MisconfigurationException: If the trainer's batches are no edit batches, too large for the method, or of
            requests that it cannot take.
    """
    loader = trainer.train_dataloader
    if not isinstance(loader, EditLoader):
        raise MisconfigurationException(
            f"`SequentialEditor` edits the batches of an `EditLoader`, found {type(loader).__name__}. Use "
            "`EditDataModule`, or wrap your requests: `EditLoader(requests, batch_size=100)`."
        )
    check_batch_size(method, loader.batch_size)
    planned = loader.requests[: int(trainer.num_training_batches) * loader.batch_size]
    check_subjects(method, planned)
    return [*loader.earlier, *planned]


class Preparation(NamedTuple):
    """What is settled from the model and the settings alone.

    Attributes:
        lm: The language model.
        sites: The matrices to edit.
        method: The method.
        contexts: How many context templates to sample.
        context_length: Tokens of each.
        max_tokens: Tokens in one forward pass as the user has set them; None takes as many as memory allows.
        home: Where moments and states are held; beside the matrices if None.
    """

    lm: LanguageModel
    sites: Sequence[EditSite]
    method: Method
    contexts: int
    context_length: int
    max_tokens: int | None
    home: torch.device | None

    def memory_need(self, batch: Sequence[EditRequest], max_tokens: int) -> Need:
        """What a run over such batches will need with so many tokens in one forward pass."""
        lm, elsewhere = self.lm, self.home is not None and self.home.type != self.lm.device.type
        about = batch_of(lm, batch, self.contexts + 1, self.context_length, max_tokens)
        return need(shapes_of(lm.model, self.sites), about, self.method, elsewhere)

    def tokens_at_once(self, batch: Sequence[EditRequest]) -> int:
        """Tokens in one forward pass: as set, or as many as memory allows for such a batch."""
        available = sum(map(capacity, {parameter.device for parameter in self.lm.model.parameters()}))
        return self.max_tokens or fitting_tokens(available, lambda tokens: self.memory_need(batch, tokens))

    @doing("sampling context templates")
    def sample_contexts(self, seed: int) -> list[str]:
        """Context templates, the empty one first; that alone for a method that needs no targets."""
        count = self.contexts if self.method.needs_targets else 0
        return sample_contexts(self.lm, count=count, length=self.context_length, seed=seed)

    def first_phrasings(self, loader: EditLoader, requests: Sequence[EditRequest]) -> list[EditRequest]:
        """A batch's requests in all forms that they are edited in; what cannot be edited in them is refused now.

        Raises:
            UserError: If the tokenizer lacks a form, or one is edited at the last block.
        """
        if self.method.needs_targets:
            check_last_block(self.lm, requests, [site.layer for site in self.sites])
        forms = loader.chat.forms(self.lm.tokenizer)
        return [each._replace(form=form) for form in forms for each in requests[: loader.batch_size]]

    @doing("looking at keys")
    def look_at_keys(
        self, loader: EditLoader, requests: Sequence[EditRequest], contexts: Sequence[str], max_tokens: int, same: float
    ) -> KeyPlan:
        """Find out which requests share a key, say so, and refuse those that are too long.

        Raises:
            UserError: If one has no room after the longest context template or no token for its target.
        """
        plan = KeyPlan(tuple(requests), ((),) * len(requests))
        if self.method.needs_targets:
            plan = look_at_keys(self.lm, requests, self.sites, max_tokens, same)
        forms, earlier = loader.chat.forms(self.lm.tokenizer), len(loader.earlier)
        plan = plan._replace(batch_size=loader.batch_size, forms=forms, earlier=earlier)
        report_keys(plan)
        longest, most = max(contexts, key=len), self.lm.config.max_position_embeddings
        for place in range(len(requests)):
            for phrasing in plan.phrasings(place):
                check_target(self.lm.tokenizer, phrasing)
                check_length(self.lm.tokenizer, phrasing, longest, most)
        return plan


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


class Prepared:
    """What runs on one unedited model find out but once: the method's states before the first batch, and contexts.

    Whoever edits a model again and again in one process gives it to every run. A run of its own keeps nothing: of some
    methods this is as much again as they need.
    """

    def __init__(self) -> None:
        self._states: tuple[list[Any], list[State], dict[str, dict[str, float]]] | None = None
        self._contexts: tuple[list[Any], list[str]] | None = None

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


def _apart(states: Sequence[State], saved: Collection[str]) -> list[State]:
    """States with copies of what changes; all else is shared."""
    return [{name: each.clone() if name in saved else each for name, each in state.items()} for state in states]


def states_rest_on(model: str, method: Method, settings: StatisticsSettings, sites: Sequence[EditSite]) -> list[Any]:
    """What the method's states before the first batch depend on, to be compared with that of another run."""
    arguments = vars(method)
    if not all(isinstance(value, str | int | float | None) for value in arguments.values()):
        arguments = {"": object()}  # what cannot be compared is like nothing else
    needed = [settings, corpus_identity(settings)] if method.needs_second_moment else []
    return [model, type(method), arguments, [(site.name, site.stored.device) for site in sites], *needed]


@doing("preparing second moments and the method")
def prepare_states(
    lm: LanguageModel,
    sites: Sequence[EditSite],
    weights: Sequence[Tensor],
    method: Method,
    settings: StatisticsSettings,
    offload: Offload,
    track: Track,
    known: KnownStates | None = None,
) -> tuple[MethodStates, dict[str, dict[str, float]]]:
    """Find out what the method knows of each matrix before the first batch.

    Where the same was prepared before for another regulariser, `known`, it is taken over as far as that goes.

    Returns:
        The states, and what can be said about each matrix's statistics, by its name; see `diagnose`.
    """
    moments: dict[str, SecondMoment] = {}
    if method.needs_second_moment:
        moments = second_moments(lm, sites, settings, track, offload.home)
    states, diagnosis = [], {}
    bar = track(sites, "what the edits keep", len(sites)) if moments else sites
    fits = known is not None and known.layers == [site.layer for site in sites] and type(known.method) is type(method)
    for number, site in enumerate(bar):
        moment, half, tokens = moments.pop(site.name, None) or (None, None, None)
        placed = None if moment is None else moment.to(site.stored.device)
        if known is not None and fits:
            state = method.state_like(known.states[number], known.method, site.read(), placed)
        else:
            state = method.initial_state(site.read(), placed)
        diagnosis[site.name] = diagnose(state, moment, half, method.null_space_threshold, tokens)
        states.append(offload.keep(state))
    return MethodStates(states, weights, offload), diagnosis


@doing("measuring target norms")
def measure_anchors(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    layers: Sequence[int],
    max_tokens: int,
    known: Tensor,
    track: Track,
) -> Tensor:
    """Norm of the unedited model's state at the target place of each request, `[N]`.

    The model is unedited at the start of a resumed run as well; the norms `known` that its checkpoint holds are kept.
    """
    norms, size = [known.cpu()], ANCHOR_RECORDS
    starts = range(len(known), len(requests), size)
    for start in track(starts, "target norms", len(starts)):
        stream = SubjectStream(lm, requests[start : start + size], [""], layers[0], max_tokens)
        norms.append(stream.values(layers[-1]).norm(dim=1).cpu())
    return torch.cat(norms)
