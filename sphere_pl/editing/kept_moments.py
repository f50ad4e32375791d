"""Second moments that are kept on disk as safetensors, from run to run.

A file is addressed by all that its moment was computed from: the weights, the matrix, the text, how many tokens of it.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sphere_pl.data.builtin import corpus_path
from sphere_pl.editing.moments import SecondMoment, StatisticsSettings, budget_of, compute_second_moments
from sphere_pl.errors import UserError
from sphere_pl.model.embedded import cache_folder
from sphere_pl.model.families import EditSite
from sphere_pl.model.fingerprint import fingerprint
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.progress import Track
from sphere_pl.storage.addresses import address_of
from sphere_pl.storage.checkpoint_file import tensor_digest
from sphere_pl.storage.files import expanded, write_atomically


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
        with _locked(next(iter(paths.values())).parent):
            missing = [site for site in sites if not paths[site.name].exists()]  # no other run has added them meanwhile
            if missing:
                for name, moment in compute_second_moments(lm, missing, settings, track, home).items():
                    _save(moment, identities[name], paths[name])
    return {name: _load(path) for name, path in paths.items()}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make a cache folder, and let one process at a time add to it."""
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
        yield
    finally:
        lock.release()


def corpus_identity(settings: StatisticsSettings) -> str:
    """What the text is: the hash of a file, the name of a data set, or the seed of the sampling."""
    if settings.corpus == "builtin":
        return f"builtin {hashlib.sha256(corpus_path().read_bytes()).hexdigest()}"
    if settings.corpus and expanded(settings.corpus).is_file():
        return hashlib.sha256(expanded(settings.corpus).read_bytes()).hexdigest()
    return settings.corpus or f"sampled by the model, seed {settings.seed}"


def _identity(model: str, corpus: str, site: EditSite, settings: StatisticsSettings) -> dict[str, str]:
    """Everything that the result depends on."""
    adaptive = {"tolerance": str(settings.tolerance), "seconds": str(settings.seconds)} if settings.adaptive else {}
    return {
        "model": model,
        "matrix": site.name,
        "corpus": corpus,
        "tokens": str(budget_of([site], settings)),
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
