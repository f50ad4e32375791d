"""Keys are looked at before anything is edited: which are nearly equal, and which say nothing of their subject.

Two requests with one key cannot have two values there: they get one target that serves both. A subject that ends at an
attention sink has no key of its own. Many models have one at the first token of a text, and after some words at the
second or third: to edit what is read there changes what every text attends to, and has destroyed models.

Keys are those of the plain prompts on the unedited model, so that a resumed run finds the same. They are compared at
the deepest edited layer, where alone subjects that end in the same token differ; a sink may show at any of the layers.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sphere_pl.data.request import EditBatch, EditRequest, Form, shorten
from sphere_pl.data.review import contradicts
from sphere_pl.editing.asked import Asked, ask_together
from sphere_pl.editing.representations import SubjectStream, capture_input
from sphere_pl.errors import UserError
from sphere_pl.model.families import EditSite
from sphere_pl.model.language_model import PROMPT, LanguageModel
from sphere_pl.model.tokens import in_context, tokenize
from sphere_pl.text.joining import opens_with_template
from sphere_pl.text.numbers import counted

log = logging.getLogger(__name__)
# Directions of the keys of requests, `[n, d]`: from the requests and what finds the directions of some of them.
Directions = Callable[[Sequence[EditRequest], Callable[[Sequence[EditRequest]], Tensor]], Tensor]

# Mean cosine of the keys of different tokens at the first position from which on it is a sink, and cosine to their mean
# from which on another place is one too. At the first edited layer sinks were above 0.9, all else below 0.4.
SINK = 0.75
SKETCH = 512  # dimensions that keys of many requests are compared in
# What a subject at a sink is asked after. To edit the next token in its place does not do: its keys after different
# subjects have mean cosines of 0.6 to 0.9 (SmolLM2-135M, Qwen2.5-0.5B); on the former 4 of 13 facts held that way,
# against all 13 after the opening, and other subjects' answers changed twice as often.
OPENING = "This is well known. "
EARLIER = 8  # edits of earlier batches that a target serves besides, the latest ones
_TOGETHER = 256  # requests whose keys are compared with all earlier ones at a time
_MOST = 32  # different tokens that are tried at the first position


class KeyPlan(NamedTuple):
    """What is known of the requests' keys, by their places in the stream.

    Attributes:
        requests: The stream; those at a sink are asked after a context.
        alike: The earlier requests that have nearly the key of each.
        batch_size: Requests in a batch.
        forms: The forms that each request is edited in; the plain one stands for its own.
        earlier: How many of the stream an earlier run has edited; batches begin after them.
    """

    requests: tuple[EditRequest, ...] = ()
    alike: tuple[tuple[int, ...], ...] = ()
    batch_size: int = 1
    forms: tuple[Form, ...] = (Form(),)
    earlier: int = 0

    def ask(self, batch: EditBatch) -> Asked:
        """How a batch is put to the model: requests of nearly one key together, with the earlier ones of that key."""
        n, stop, places = len(batch.requests), batch.edits, list(batch.places)
        others = {other for place in places for other in self.overwritten(place) if self.lasts(other, stop)}
        places += sorted(others - set(places))
        number = {place: at for at, place in enumerate(places)}
        group = list(range(len(places)))
        for place, at in number.items():
            for other in (number[each] for each in self.alike[place] if each in number):
                joined = (group[at], group[other])
                group = [min(joined) if each in joined else each for each in group]
        groups = [[at for at, each in enumerate(group) if each == first] for first in sorted(set(group))]
        asked = ask_together([self.phrasings(self._last_word(place, stop)) for place in places], groups, n)
        earlier = [{each for each in self.alike[place] if each < self._start(place)} for place in batch.places]
        replaced = tuple(len(each - others) for each in earlier)
        return asked._replace(replaced=replaced) if any(replaced) else asked

    def sharing(self, place: int) -> list[int]:
        """Others of its batch that have nearly the key of a request."""
        start = self._start(place)
        batch = range(start, min(start + self.batch_size, len(self.requests)))
        return [each for each in batch if place in self.alike[each] or each in self.alike[place]]

    def overwritten(self, place: int) -> list[int]:
        """Requests of earlier batches that have nearly the key of one; the latest, should there be many."""
        return [other for other in self.alike[place] if other < self._start(place)][-EARLIER:]

    def lasts(self, place: int, stop: int) -> bool:
        """Whether no later request before `stop` contradicts one."""
        return self._last_word(place, stop) == place

    def _start(self, place: int) -> int:
        first = 0 if place < self.earlier else self.earlier
        return place - (place - first) % self.batch_size

    def _last_word(self, place: int, stop: int) -> int:
        """The last request before `stop` of the same key that contradicts one; the request itself if none does."""
        later = (other for other in range(place + 1, stop) if place in self.alike[other])
        return max((each for each in later if contradicts(self.requests[place], self.requests[each])), default=place)

    def phrasings(self, place: int) -> tuple[EditRequest, ...]:
        """A request in all of its wordings, in each of the forms; one that is typed in a template has no other."""
        request = self.requests[place]
        worded = [request, *(request._replace(prompt=wording) for wording in request.wordings)]
        typed = opens_with_template(request.question)
        forms = [request.form if form == Form() or typed else form for form in self.forms[: 1 if typed else None]]
        return tuple(each._replace(form=form) for form in forms for each in worded)


def look_at_keys(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    sites: Sequence[EditSite],
    max_tokens: int,
    same: float,
    directions_of: Directions | None = None,
) -> KeyPlan:
    """Look at the keys of all requests of a run on the unedited model.

    Args:
        lm: The unedited language model.
        requests: The stream.
        sites: The matrices to edit, shallow to deep.
        max_tokens: Tokens in one forward pass.
        same: Cosine of two keys from which on they are nearly equal.
        directions_of: Gives the directions of requests, calling what finds them for those that it does not know; all
            are found if it is None.
    """
    sinks = set(at_sinks(lm, requests, sites, max_tokens))
    requests = [each._replace(form=Form(OPENING)) if at in sinks else each for at, each in enumerate(requests)]
    find = partial(_directions, lm, sites, max_tokens)
    directions = find(requests) if directions_of is None else directions_of(requests, find)
    return KeyPlan(tuple(requests), _alike(directions, same))


def report_keys(plan: KeyPlan) -> None:
    """Say which requests share a key, and which are asked after a context."""
    places = range(len(plan.requests))
    sharing = [place for place in places if plan.sharing(place)]
    if sharing:
        log.warning(
            "%s nearly the key of another in their batch, as facts of one subject do: such edits get one "
            "target that serves all of them. The first: %s and %s.",
            counted(len(sharing), "edit has", "edits have"),
            _named(plan, sharing[0]), _named(plan, plan.sharing(sharing[0])[0]),
        )  # fmt: skip
    later = [place for place in places if plan.overwritten(place)]
    if later:
        place, other = later[0], plan.overwritten(later[0])[-1]
        serves = "its target serves both" if plan.lasts(other, place + 1) else "they contradict each other"
        log.warning(
            "%s nearly the key of one in an earlier batch. The first: %s overwrites %s; %s. Column "
            "overwrites of targets.csv names all.",
            counted(len(later), "edit has", "edits have"), _named(plan, place), _named(plan, other), serves,
        )  # fmt: skip
    moved = [place for place in places if plan.requests[place].form != Form()]
    if moved:
        log.warning(
            "%s subject at the beginning of the text, where this model has one key for all tokens (an attention sink). "
            "Such a fact is edited and asked after %r; at the very beginning of a text it does not hold. The "
            "first: %s.",
            counted(len(moved), "edit has its", "edits have their"),
            plan.requests[moved[0]].form.before, _named(plan, moved[0]),
        )  # fmt: skip


def _named(plan: KeyPlan, place: int) -> str:
    request = plan.requests[place]
    return f"edit {place + 1} ({shorten(request.question)} -> {shorten(request.target_new, 40)})"


@torch.no_grad()
def at_sinks(
    lm: LanguageModel, requests: Sequence[EditRequest], sites: Sequence[EditSite], max_tokens: int
) -> list[int]:
    """Places of the requests whose subject ends at an attention sink: its key is that of the first position."""
    directions = sink_directions(lm, requests, sites)
    if not directions:
        return []
    found = list[int]()
    for start in range(0, len(requests), _TOGETHER):
        some = requests[start : start + _TOGETHER]
        stream = SubjectStream(lm, some, [""], sites[0].layer, max_tokens)
        there = torch.zeros(len(some), dtype=torch.bool)
        for number, site in enumerate(sites):
            keys = normalize(stream.keys(site).float(), dim=1)  # of every site: the stream goes on from one to the next
            if number in directions:
                there |= (keys @ directions[number].to(keys)).cpu() > SINK
        plain = torch.tensor([each.form == Form() and not opens_with_template(each.question) for each in some])
        found += (start + (there & plain).nonzero().flatten()).tolist()
    return found


@torch.no_grad()
def sink_directions(lm: LanguageModel, requests: Sequence[EditRequest], sites: Sequence[EditSite]) -> dict[int, Tensor]:
    """Direction `[d_in]` of the keys at the first position, by the number of the site, where it is one for all tokens.

    Tried with tokens of the requests and of some other words.
    """
    rows = lm.tokenizer([PROMPT, *(request.question for request in requests[:_MOST])])["input_ids"]
    ids = list(dict.fromkeys(token for row in rows for token in row))[:_MOST]
    column = torch.tensor(ids, device=lm.device)[:, None]
    calls, found = lm.block_calls(column, torch.ones_like(column), torch.zeros_like(column)), dict[int, Tensor]()
    hidden, layer = calls.hidden, 0
    for number, site in enumerate(sites):
        with capture_input(site.module) as seen:
            hidden, layer = lm.run(hidden, calls, layer, site.layer + 1), site.layer + 1
        keys = normalize(seen[0].reshape(len(ids), -1).float(), dim=1)
        cosines = keys @ keys.T
        if float((cosines.sum() - len(ids)) / (len(ids) * (len(ids) - 1))) > SINK:
            found[number] = normalize(keys.mean(0), dim=0)
    return found


def _directions(
    lm: LanguageModel, sites: Sequence[EditSite], max_tokens: int, requests: Sequence[EditRequest]
) -> Tensor:
    """Direction of each request's key, in few enough dimensions to be kept for a long stream, `[n, d]`."""
    some = (requests[start : start + _TOGETHER] for start in range(0, len(requests), _TOGETHER))
    return torch.cat([_directions_of_some(lm, sites, max_tokens, each) for each in some])


def _directions_of_some(
    lm: LanguageModel, sites: Sequence[EditSite], max_tokens: int, requests: Sequence[EditRequest]
) -> Tensor:
    keys = SubjectStream(lm, requests, [""], sites[0].layer, max_tokens).keys(sites[-1]).cpu()
    if keys.shape[1] > SKETCH:
        generator = torch.Generator().manual_seed(0)
        keys = keys @ torch.randn(keys.shape[1], SKETCH, generator=generator)
    return normalize(keys, dim=1)


def _alike(directions: Tensor, same: float) -> tuple[tuple[int, ...], ...]:
    """The earlier ones that are nearly in the direction of each."""
    found: list[tuple[int, ...]] = []
    for start in range(0, len(directions), _TOGETHER):
        rows = directions[start : start + _TOGETHER]
        near = (rows @ directions[: start + len(rows)].T >= same).tril(start - 1)
        found += [tuple(row.nonzero().flatten().tolist()) for row in near]
    return tuple(found)


def check_last_block(lm: LanguageModel, requests: Sequence[EditRequest], layers: Sequence[int]) -> None:
    """Refuse to edit at the last block what is asked after its subject: nothing reads the subject there any more.

    Raises:
        UserError: Naming the first request whose subject does not end its prompt.
    """
    if layers[-1] != lm.n_layers - 1:
        return
    for request in requests:
        (tokens,) = tokenize(lm.tokenizer, [in_context(request, "", request.target_new)])
        if tokens.subject_last != tokens.target_start - 1:
            raise UserError(
                f"`layers={list(layers)}` ends with the model's last block, after which no attention carries a "
                f"subject's value to the words after it: {shorten(request.question)} could not be edited there. "
                f"Choose blocks below {lm.n_layers - 1}, such as --model.layers=[{lm.n_layers // 5}]."
            )
