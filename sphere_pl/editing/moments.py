"""Second moments `E[k kᵀ]` of the keys at the edited matrices, over ordinary text.

One pass over the text serves all matrices and stops after the deepest one.
"""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sphere_pl.data.builtin import corpus_passages, sentence_openers, written
from sphere_pl.data.corpus import read_corpus
from sphere_pl.editing.representations import capture_input
from sphere_pl.editing.running_moment import RunningMoment
from sphere_pl.errors import UserError
from sphere_pl.model.batching import micro_batches, pad
from sphere_pl.model.families import EditSite
from sphere_pl.model.fingerprint import fingerprint
from sphere_pl.model.generation import sample_texts
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.tokens import encode
from sphere_pl.progress import Track

log = logging.getLogger(__name__)
_PADDING = 0.05  # share of padding, above which rows are sorted by length
_TOLERANCE = 0.5  # of the built-in text; see `RunningMoment` and docs/models.md
_TOGETHER = 64  # passages that are tokenised at once


@dataclass(frozen=True)
class StatisticsSettings:
    """Which text second moments are computed from.

    Args:
        corpus: `builtin`, text in the public domain that comes with this package; `sampled` (or None), which the model
            writes itself; a text file; or a hub data set as `id`, `id:config` or `id:config:column`.
        tokens: How many tokens to use at most; ten times d_in if None.
        tolerance: Text is read until keys of further text reach into the null space by no more than this share
            further than those seen. None stands for 0.5 with `builtin`; with all others, all `tokens` are read.
        seconds: No more text is read after so many seconds. What is computed depends on the machine then.
        length: Tokens of one sequence.
        batch_size: Sequences of full length in one forward pass; shorter ones are put together by length.
        seed: Seed of the sampling.
        cache_dir: Where results are kept; the user's cache folder if None.
    """

    corpus: str | None = "builtin"
    tokens: int | None = None
    tolerance: float | None = None
    seconds: float | None = None
    length: int = 128
    batch_size: int = 32
    seed: int = 0
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (("length", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise UserError(f"`statistics.{name}={getattr(self, name)}` must be at least {least}.")
        if self.tokens is not None and self.tokens < 1:
            raise UserError(f"`statistics.tokens={self.tokens}` must be at least 1.")
        for name in ("tolerance", "seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"`statistics.{name}={value}` must be above 0, or left out.")

    def settled(self) -> "StatisticsSettings":
        """The same with `sampled` as None, and the tolerance of the built-in text."""
        if self.corpus in {"sampled", None}:
            return replace(self, corpus=None)
        if self.corpus != "builtin":
            return self
        tolerance = _TOLERANCE if self.tolerance is None else self.tolerance
        return replace(self, corpus="builtin", tolerance=tolerance)

    @property
    def adaptive(self) -> bool:
        """Whether reading may stop before all tokens are used."""
        return self.tolerance is not None or self.seconds is not None

    @property
    def source(self) -> str:
        """What the text is, in words."""
        return {None: "text that the model wrote", "builtin": "the built-in text"}.get(self.corpus, str(self.corpus))


class SecondMoment(NamedTuple):
    """What is known of the keys at one matrix.

    Attributes:
        matrix: `E[k kᵀ]`, float32 `[d_in, d_in]`.
        half_spectrum: Eigenvalues of the moment of the first half of the text, ascending, float32 `[d_in]`: whoever
            cuts the spectrum at a threshold sees in it whether twice the text made a difference. None if there was too
            little text for two halves, if reading stopped by itself, or if the moment was kept before halves were
            looked at.
        tokens: How many keys it was computed from; None if it was kept before they were counted.
    """

    matrix: Tensor
    half_spectrum: Tensor | None = None
    tokens: int | None = None


@torch.no_grad()
def compute_second_moments(
    lm: LanguageModel,
    sites: Sequence[EditSite],
    settings: StatisticsSettings,
    track: Track,
    home: torch.device | None = None,
) -> dict[str, SecondMoment]:
    """Compute second moments in one pass.

    Sums are kept in float64: single precision over 10⁷ tokens would blur the small eigenvalues that the null-space
    threshold looks at.
    """
    settings = settings.settled()
    sequences = corpus_rows(lm, settings, budget_of(sites, settings), track)
    if settings.adaptive:
        return _as_many_as_needed(lm, sites, settings, sequences, track, home)
    first, second = _halves([len(sequence) for sequence in sequences], settings.batch_size)
    sums: dict[str, Tensor] = {}
    spectra: dict[str, Tensor] = {}
    count = 0
    for number, rows in enumerate(track(first + second, "second moments", len(first + second)), start=1):
        ids, mask = pad([sequences[row] for row in rows], lm.pad_id, lm.device)
        for name, keys in _keys_of(lm, sites, ids, mask).items():
            product = (keys.T @ keys).to(home or keys.device)
            sums[name] = sums[name].add_(product) if name in sums else product.double()
        count += int(mask.sum())
        if number == len(first) and second:
            spectra = {site.name: _spectrum(sums[site.name], count, site.stored.device) for site in sites}
    return {name: SecondMoment((total / count).float(), spectra.get(name), count) for name, total in sums.items()}


def _as_many_as_needed(
    lm: LanguageModel,
    sites: Sequence[EditSite],
    settings: StatisticsSettings,
    sequences: Sequence[Sequence[int]],
    track: Track,
    home: torch.device | None,
) -> dict[str, SecondMoment]:
    """Read on until every matrix has seen enough; one that has costs nothing more, nor do the layers below it."""
    tolerance = -math.inf if settings.tolerance is None else settings.tolerance
    running = {site.name: RunningMoment(tolerance, home) for site in sites}
    batches = _batches([len(sequence) for sequence in sequences], settings.batch_size)
    began = time.monotonic()
    for rows in track(batches, "second moments", len(batches)):
        left = [site for site in sites if not running[site.name].settled]
        late = settings.seconds is not None and time.monotonic() - began > settings.seconds
        if not left or (late and running[left[0].name].count):
            break
        ids, mask = pad([sequences[row] for row in rows], lm.pad_id, lm.device)
        for name, keys in _keys_of(lm, left, ids, mask).items():
            running[name].take(keys)
    return {name: SecondMoment(moment.moment(), None, moment.count) for name, moment in running.items()}


def _spectrum(total: Tensor, count: int, device: torch.device) -> Tensor:
    """Eigenvalues of the moment so far, found on `device`."""
    eigenvalues: Tensor = torch.linalg.eigvalsh((total / count).float().to(device))
    return eigenvalues.cpu()


def _halves(lengths: Sequence[int], batch_size: int) -> tuple[list[list[int]], list[list[int]]]:
    """Batches of the first half of the tokens, to a whole batch in the text's order, and of the rest."""
    steps = range(0, len(lengths), batch_size)
    half = sum(lengths) / 2
    middle = min(steps, key=lambda step: abs(sum(lengths[:step]) - half))
    rest = [[row + middle for row in rows] for rows in _batches(lengths[middle:], batch_size)]
    return (_batches(lengths[:middle], batch_size), rest) if middle else (rest, [])


def _batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Rows of one forward pass each: as the text has them, or sorted by length where padding would be felt.

    Rows of one length need no padding, no mask and no positions of their own, so this is right for every family.
    Documents packed into one row would need a mask that sliding windows and flash attention do not take, and the
    attention between documents, all of it masked, would be computed all the same.
    """
    rows = range(len(lengths))
    batches = [list(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    if padded <= (1 + _PADDING) * sum(lengths):
        return batches
    return micro_batches(lengths, batch_size * max(lengths))


def _keys_of(lm: LanguageModel, sites: Sequence[EditSite], ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Keys of all real tokens at each site, float32 `[tokens, d_in]`."""
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    calls = lm.block_calls(ids, mask, positions)
    hidden, layer, keys = calls.hidden, 0, {}
    for site in sites:
        hidden = lm.run(hidden, calls, layer, site.layer)
        with capture_input(site.module) as inputs:
            hidden = lm.run(hidden, calls, site.layer, site.layer + 1)
        tokens = inputs[0].reshape(mask.numel(), -1)  # some blocks hand rows and columns on as one
        keys[site.name] = tokens[mask.bool().flatten().to(tokens.device)].float()
        layer = site.layer + 1
    return keys


def budget_of(sites: Sequence[EditSite], settings: StatisticsSettings) -> int:
    """How many tokens are read at most, for matrices of these sizes."""
    return settings.tokens or 10 * max(max(site.stored.shape) for site in sites)


def corpus_rows(lm: LanguageModel, settings: StatisticsSettings, budget: int, track: Track) -> list[list[int]]:
    """Cut the corpus of settled settings into token sequences of `settings.length` until the budget is met.

    Raises:
        UserError: If it holds no text.
    """
    if settings.corpus == "builtin":
        return _packed(lm, corpus_passages(), settings.length, budget)
    if settings.corpus is None:
        texts: Iterable[str] = _own_texts(lm, settings, budget, track)
    else:
        texts = read_corpus(settings.corpus)
    sequences: list[list[int]] = []
    total = 0
    length = min(settings.length, lm.context)
    for text in texts:
        # A corpus may be one document of any size: no more of it is tokenised than can be needed.
        ids = encode(lm.tokenizer, [text[: 20 * budget]])[0].ids
        for start in range(0, len(ids), length):
            sequences.append(ids[start : start + length])
            total += len(sequences[-1])
            if total >= budget:
                return sequences
    if total == 0:
        raise UserError(f"The corpus {settings.corpus!r} holds no text. Give a text file or a data set with text.")
    log.warning("The corpus %r holds %d tokens, fewer than the %d asked for.", settings.corpus, total, budget)
    return sequences


def _packed(lm: LanguageModel, passages: Sequence[str], length: int, budget: int) -> list[list[int]]:
    """Rows of one length, without padding, that begin as the model's prompts do; passage follows passage."""
    length = min(length, lm.context)
    opening = _opening(lm)
    ids: list[int] = []
    step = max(1, length - len(opening))
    for start in range(0, len(passages), _TOGETHER):
        text = "\n\n".join(passages[start : start + _TOGETHER])
        ids += lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) // step * length >= budget:
            break
    rows = [[*opening, *ids[start : start + step]] for start in range(0, len(ids) - step + 1, step)]
    return rows[: -(-budget // length)] or [[*opening, *ids]]


def _opening(lm: LanguageModel) -> list[int]:
    """What the tokenizer puts in front of a text, without which some models' states are not what they are."""
    whole, bare = (lm.tokenizer("A", add_special_tokens=special)["input_ids"] for special in (True, False))
    return next((whole[:at] for at in range(len(whole)) if whole[at : at + len(bare)] == bare), [])


def _own_texts(lm: LanguageModel, settings: StatisticsSettings, budget: int, track: Track) -> Iterable[str]:
    """Text that the model writes itself, or has written before where that comes with the package."""
    kept, asked = written(), (settings.length, settings.seed)
    if (kept.length, kept.seed) == asked and budget <= kept.tokens and fingerprint(lm) in kept.models:
        return kept.texts
    return sampled_texts(lm, settings, budget, track)


def sampled_texts(lm: LanguageModel, settings: StatisticsSettings, budget: int, track: Track) -> Iterator[str]:
    """Text that the model writes now, from openers on many subjects."""
    beginnings = sentence_openers()
    rows = settings.batch_size * 4
    rounds = -(-budget // (rows * settings.length)) + 1
    for index in track(range(rounds), "sampling text", rounds):
        chosen = [beginnings[(index * rows + row) % len(beginnings)] for row in range(rows)]
        # One short of the rest of the openers' tokens: re-tokenised text must fit in one sequence.
        yield from sample_texts(lm, chosen, settings.length - 12, seed=settings.seed * 100_003 + index)
