"""Second moments `E[k kᵀ]` of the keys at the edited matrices, over ordinary text.

One pass over the text serves all matrices and stops after the deepest one. Results are kept on disk as safetensors,
addressed by what they were computed from: the model's weights, the matrix, the text, the number of tokens.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sphere_pl.data.builtin import corpus_passages, corpus_path, sentence_openers, written
from sphere_pl.data.hub import hub_rows
from sphere_pl.editing.representations import capture_input
from sphere_pl.editing.running_moment import RunningMoment
from sphere_pl.errors import UserError
from sphere_pl.model.embedded import cache_folder
from sphere_pl.model.families import EditSite
from sphere_pl.model.fingerprint import fingerprint
from sphere_pl.model.generation import sample_texts
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.tokens import encode, micro_batches, pad
from sphere_pl.progress import Track
from sphere_pl.storage.addresses import address_of
from sphere_pl.storage.checkpoint_file import tensor_digest
from sphere_pl.storage.files import write_atomically

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


def second_moments(
    lm: LanguageModel,
    sites: Sequence[EditSite],
    settings: StatisticsSettings,
    track: Track,
    home: torch.device | None = None,
) -> dict[str, SecondMoment]:
    """Second moments of every site, from the cache where it has them.

    Args:
        lm: The unedited language model.
        sites: The edited matrices.
        settings: The text and its amount.
        track: Shows progress: called with an iterable, a description and its length.
        home: Where sums are held; each on its matrix's device if None.

    Returns:
        The moment, in main memory, for each site's name.
    """
    model = fingerprint(lm)
    settings = settings.settled()
    corpus = corpus_identity(settings)
    identities = {site.name: _identity(model, corpus, site, settings) for site in sites}
    paths = {name: _path(identity, settings) for name, identity in identities.items()}
    if any(not path.exists() for path in paths.values()):
        folder = next(iter(paths.values())).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / "lock")
            lock.acquire()
        except OSError as error:
            raise UserError(
                f"The cache folder {folder} cannot be made or written: {error.strerror}. Name another one with "
                "--model.statistics.cache_dir."
            ) from error
        try:
            missing = [site for site in sites if not paths[site.name].exists()]
            if missing:
                for name, moment in compute_second_moments(lm, missing, settings, track, home).items():
                    _save(moment, identities[name], paths[name])
        finally:
            lock.release()
    return {name: _load(path) for name, path in paths.items()}


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
    sequences = corpus_rows(lm, settings, _budget(sites, settings), track)
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
        keys[site.name] = inputs[0][mask.bool().to(inputs[0].device)].float()
        layer = site.layer + 1
    return keys


def _budget(sites: Sequence[EditSite], settings: StatisticsSettings) -> int:
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
    length = min(settings.length, lm.config.max_position_embeddings)
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
    length = min(length, lm.config.max_position_embeddings)
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


def read_corpus(corpus: str) -> Iterator[str]:
    """Documents of a text file (split at blank lines) or of a hub data set.

    Args:
        corpus: A path, or `id`, `id:config`, `id:config:column`.

    Raises:
        UserError: If it is neither a file nor to be had from the hub.
    """
    path = Path(corpus).expanduser()
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"The corpus {corpus!r} is not UTF-8 text ({error}). Convert it and try again.") from error
        yield from (part.strip() for part in text.split("\n\n") if part.strip())
        return
    yield from _hub_corpus(corpus)


def _hub_corpus(corpus: str) -> Iterator[str]:
    identifier, config, column = (*corpus.split(":"), "", "")[:3]

    def refusal(reason: str) -> str:
        return (
            f"The corpus {corpus!r} is no file, and the hub did not give it: {reason} Give a text file, a data set as "
            "id:config:column, or leave it out to sample text from the model itself."
        )

    for row in hub_rows(refusal, identifier, config or None, split="train", streaming=True):
        if (column or "text") not in row:
            raise UserError(
                f"The corpus {corpus!r} has no column {column or 'text'!r}, found {', '.join(row)}. Name the one that "
                "holds the text: id:config:column."
            )
        yield str(row[column or "text"])


def beginning(documents: Iterable[str], characters: int) -> str:
    """The first documents, until there are enough characters."""
    chosen: list[str] = []
    for document in documents:
        chosen.append(document[:characters])
        if sum(map(len, chosen)) >= characters:
            break
    return "\n\n".join(chosen)


def corpus_identity(settings: StatisticsSettings) -> str:
    """What the text is: the hash of a file, the name of a data set, or the seed of the sampling."""
    if settings.corpus == "builtin":
        return f"builtin {hashlib.sha256(corpus_path().read_bytes()).hexdigest()}"
    if settings.corpus and Path(settings.corpus).expanduser().is_file():
        return hashlib.sha256(Path(settings.corpus).expanduser().read_bytes()).hexdigest()
    return settings.corpus or f"sampled by the model, seed {settings.seed}"


def _identity(model: str, corpus: str, site: EditSite, settings: StatisticsSettings) -> dict[str, str]:
    """Everything that the result depends on."""
    adaptive = {"tolerance": str(settings.tolerance), "seconds": str(settings.seconds)} if settings.adaptive else {}
    return {
        "model": model,
        "matrix": site.name,
        "corpus": corpus,
        "tokens": str(_budget([site], settings)),
        "length": str(settings.length),
        "batch_size": str(settings.batch_size),
        "format": "1",
        **adaptive,
    }


def _path(identity: dict[str, str], settings: StatisticsSettings) -> Path:
    return cache_folder(settings.cache_dir) / "second_moments" / f"{address_of(identity)}.safetensors"


def _save(moment: SecondMoment, identity: dict[str, str], path: Path) -> None:
    tensors = {"second_moment": moment.matrix.cpu().contiguous()}
    if moment.half_spectrum is not None:
        tensors["half_spectrum"] = moment.half_spectrum.cpu()
    # One entry: safetensors writes several in an order that changes from process to process.
    seen = {} if moment.tokens is None else {"seen": moment.tokens}
    about = {**identity, **seen, "sha256": {name: tensor_digest(tensor) for name, tensor in tensors.items()}}
    metadata = {"about": json.dumps(about)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def _load(path: Path) -> SecondMoment:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            metadata = file.metadata() or {}
            sums = _checksums(metadata)
            seen = json.loads(metadata["about"]).get("seen") if "about" in metadata else None
        moment: Tensor = tensors["second_moment"]
        if any(tensor_digest(tensors[name]) != expected for name, expected in sums.items()):
            raise OSError("its numbers do not have the checksum that was written")
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"The kept second moment {path} is damaged ({error}). Delete that file and run the command again: it is "
            "computed again."
        ) from error
    if not torch.isfinite(moment).all():
        raise UserError(f"The kept second moment {path} holds values that are not finite. Delete it and run again.")
    return SecondMoment(moment, tensors.get("half_spectrum"), seen)


def _checksums(metadata: dict[str, str]) -> dict[str, str]:
    """The checksum of each tensor; files of earlier versions have one of the moment, or none."""
    if "about" in metadata:
        return dict(json.loads(metadata["about"])["sha256"])
    return {"second_moment": metadata["sha256"]} if "sha256" in metadata else {}
