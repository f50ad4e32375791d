"""What a run settles before its first batch: its requests, contexts, pass size, method states and anchors."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from sphere_pl.data.datamodule import EditLoader
from sphere_pl.data.request import EditRequest
from sphere_pl.editing.checks import check_batch_size, check_subjects
from sphere_pl.editing.diagnosis import report_statistics
from sphere_pl.editing.key_plan import Directions, KeyPlan, check_last_block, look_at_keys, report_keys
from sphere_pl.editing.memory_estimate import Need, batch_of, capacity, fitting_tokens, need, shapes_of
from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.editing.prepared import KnownStates, Prepared, StatePreparation
from sphere_pl.editing.representations import SubjectStream
from sphere_pl.editing.states import MethodStates, Offload
from sphere_pl.methods.base import Method
from sphere_pl.model.families import EditSite
from sphere_pl.model.generation import sample_contexts
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.token_checks import check_length, check_probes, check_written
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


def check_texts(lm: LanguageModel, plan: KeyPlan, places: Iterable[int], contexts: Sequence[str] = ("",)) -> None:
    """Refuse requests of a plan that cannot be written, or that are too long, themselves or their probes.

    Args:
        lm: The language model.
        plan: The requests with the forms that they are edited in.
        places: Those to look at.
        contexts: Context templates that they are edited after.

    Raises:
        UserError: If one has no room after the longest context template or no token for its subject or target.
    """
    places, tokenizer, longest = list(places), lm.tokenizer, max(contexts, key=len)
    phrasings = [phrasing for place in places for phrasing in plan.phrasings(place)]
    check_written(tokenizer, phrasings)
    for phrasing in phrasings:
        check_length(tokenizer, phrasing, longest, lm.context)
    for place in places:
        check_probes(tokenizer, plan.requests[place], lm.context)


class Preparation(NamedTuple):
    """What is settled from the model and the settings alone.

    Attributes:
        lm: The language model.
        sites: The matrices to edit.
        method: The method.
        contexts: How many context templates to sample.
        context_length: Tokens of each.
        max_tokens: Tokens in one forward pass as the user has set them; None takes as many as memory allows.
        offload: Where moments and states are held.
        model_hash: Fingerprint of the unedited model.
        prepared: What other runs in this process have found out, if it is kept.
    """

    lm: LanguageModel
    sites: Sequence[EditSite]
    method: Method
    contexts: int
    context_length: int
    max_tokens: int | None
    offload: Offload
    model_hash: str = ""
    prepared: Prepared | None = None

    def memory_need(self, batch: Sequence[EditRequest], max_tokens: int) -> Need:
        """What a run over such batches will need with so many tokens in one forward pass."""
        lm, home = self.lm, self.offload.home
        elsewhere = home is not None and home.type != lm.device.type
        about = batch_of(lm, batch, self.contexts + 1, self.context_length, max_tokens)
        return need(shapes_of(lm.model, self.sites), about, self.method, elsewhere)

    def tokens_at_once(self, batch: Sequence[EditRequest]) -> int:
        """Tokens in one forward pass: as set, or as many as memory allows for such a batch."""
        available = sum(map(capacity, {parameter.device for parameter in self.lm.model.parameters()}))
        return self.max_tokens or fitting_tokens(available, lambda tokens: self.memory_need(batch, tokens))

    def find_states(
        self, weights: Sequence[Tensor], statistics: StatisticsSettings, known: KnownStates | None, track: Track
    ) -> tuple[MethodStates, dict[str, dict[str, float]]]:
        """What the method knows of each matrix before the first batch; says so if editing cannot rest on it.

        Args:
            weights: The edited matrices, float32 `[d_out, d_in]`.
            statistics: Where second moments come from.
            known: What a search for settings has left.
            track: Shows progress.

        Returns:
            As `StatePreparation.find`.
        """
        preparation = StatePreparation(self.lm, self.sites, weights, self.method, statistics, self.offload, track)
        states, diagnosis = preparation.find_once(self.model_hash, self.prepared, known)
        report_statistics(diagnosis)
        return states, diagnosis

    @doing("sampling context templates")
    def sample_contexts(self) -> list[str]:
        """Context templates, the empty one first; that alone for a method that needs no targets."""
        seed = int(torch.initial_seed() % 2**31)
        count = self.contexts if self.method.needs_targets else 0
        sample = partial(sample_contexts, self.lm, count=count, length=self.context_length, seed=seed)
        if self.prepared is None:
            return sample()
        return self.prepared.contexts([self.model_hash, count, self.context_length, seed], sample)

    def first_phrasings(self, loader: EditLoader) -> list[EditRequest]:
        """A batch's requests in all forms that they are edited in; what cannot be edited in them is refused now.

        Raises:
            UserError: If the tokenizer lacks a form, or one is edited at the last block.
        """
        if self.method.needs_targets:
            check_last_block(self.lm, loader.requests, self._layers)
        forms = loader.chat.forms(self.lm.tokenizer)
        return [each._replace(form=form) for form in forms for each in loader.requests[: loader.batch_size]]

    @doing("looking at keys")
    def look_at_keys(
        self,
        loader: EditLoader,
        requests: Sequence[EditRequest],
        contexts: Sequence[str],
        max_tokens: int,
        same: float,
    ) -> KeyPlan:
        """Find out which requests share a key, say so, and refuse those that cannot be written or are too long.

        Raises:
            UserError: If one has no room after the longest context template or no token for its subject or target.
        """
        plan = KeyPlan(tuple(requests), ((),) * len(requests))
        forms, earlier = loader.chat.forms(self.lm.tokenizer), len(loader.earlier)
        plan = plan._replace(batch_size=loader.batch_size, forms=forms, earlier=earlier)
        check_texts(self.lm, plan, range(len(requests)), contexts)
        if self.method.needs_targets:
            found = look_at_keys(self.lm, requests, self.sites, max_tokens, same, self._known_directions)
            plan = plan._replace(requests=found.requests, alike=found.alike)
        report_keys(plan)
        opened = [at for at, request in enumerate(requests) if plan.requests[at].form != request.form]
        check_texts(self.lm, plan, opened, contexts)
        return plan

    @property
    def _layers(self) -> list[int]:
        return [site.layer for site in self.sites]

    @property
    def _known_directions(self) -> Directions | None:
        prepared = self.prepared
        return None if prepared is None else partial(prepared.directions, [self.model_hash, self._layers])


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
