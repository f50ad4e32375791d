"""A finished, stopped or killed run in its folder."""

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sphere_pl.data.chat import ChatSettings
from sphere_pl.errors import UserError
from sphere_pl.history.entries import Matrix
from sphere_pl.history.log import LOG_FILE, EditHistory, read_log
from sphere_pl.history.rebuild import rebuild, restrained
from sphere_pl.model.families import EditSite
from sphere_pl.model.fingerprint import fingerprint
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.loading import DeviceMap, Dtype, load_language_model
from sphere_pl.process.devices import default_device
from sphere_pl.storage.checkpoint_file import read_checkpoint as read_run_checkpoint
from sphere_pl.storage.files import write_atomically
from sphere_pl.text.names import from_yaml
from sphere_pl.text.usage import announced

EDITED = "edited.safetensors"
RESULTS = "results.json"


class BaseModel:
    """The unedited model of a run.

    Attributes:
        lm: The language model in the type in which it was edited.
        sites: The matrices that the run edits.
        weights: Their unedited values, float32 `[d_out, d_in]` in CPU memory, by name.
    """

    def __init__(self, lm: LanguageModel, layers: list[int]) -> None:
        self.lm = lm
        self.sites: list[EditSite] = lm.sites(layers)
        self.weights: dict[str, Tensor] = {site.name: site.read().cpu() for site in self.sites}

    def write(self, weights: dict[str, Tensor]) -> None:
        """Put edited matrices into the model, rounded to its type."""
        for site in self.sites:
            site.write(weights[site.name].to(site.stored.device))


@dataclass(frozen=True)
class LoadOptions:
    """How a saved run's base model is found.

    Attributes:
        model: Hub id or folder to use in place of the one that the log names, for a model that has moved.
        cache_dir: Where the embedded model is kept; the user's cache folder if None.
        trust_remote_code: Whether code from the hub may run. Never taken from the run folder.
        device: Where to put it; `default_device()` if None.
        device_map: How to spread it over several devices; see `load_language_model`.
    """

    model: str | None = None
    cache_dir: str | None = None
    trust_remote_code: bool = False
    device: str | None = None
    device_map: DeviceMap = None


@contextmanager
def own_options() -> Iterator[None]:
    """Let a message about the model name the option of the commands on a saved run, where `fit` has another."""
    try:
        yield
    except UserError as error:
        raise UserError(_FITS_OPTIONS.sub(lambda found: _OWN_OPTIONS[found[0]], str(error))) from error


_OWN_OPTIONS = {f"--model.{name}": f"--{name}" for name in ("cache_dir", "trust_remote_code", "device_map")}
_OWN_OPTIONS["--model.name"] = "--model"
_FITS_OPTIONS = re.compile("|".join(map(re.escape, _OWN_OPTIONS)))


@dataclass(frozen=True)
class SavedRun:
    """A run folder.

    Attributes:
        folder: The folder.
        history: Its edit log.
    """

    folder: Path
    history: EditHistory

    @classmethod
    def open(cls, folder: Path) -> "SavedRun":
        """Read the edit log of a run folder.

        Raises:
            UserError: If it is no run folder.
        """
        return cls(folder, read_log(folder))

    @property
    def config(self) -> dict[str, Any]:
        """The run's config.yaml; empty if it has none."""
        path = self.folder / "config.yaml"
        try:
            config = from_yaml(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{path} could not be read: {error}. Restore it from a copy.") from error
        return config if isinstance(config, dict) else {}

    def section(self, *names: str) -> dict[str, Any]:
        """A part of config.yaml, such as `section("model", "evaluation")`; empty if there is none."""
        part: Any = self.config
        for name in names:
            part = part.get(name) if isinstance(part, dict) else None
        return part if isinstance(part, dict) else {}

    @property
    def chat(self) -> ChatSettings:
        """In which form its facts are edited and asked."""
        section = self.section("data")
        return ChatSettings(section.get("chat", "plain"), section.get("system"))

    @property
    def results(self) -> dict[str, Any]:
        """The run's results.json; empty if it did not come to its end."""
        path = self.folder / RESULTS
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UserError(f"{path} could not be read: {error}. Restore it from a copy.") from error
        return results if isinstance(results, dict) else {}

    def load_base(self, options: LoadOptions = LoadOptions()) -> BaseModel:
        """Load the unedited model and make sure that it is the one that the run edited.

        Raises:
            UserError: If it cannot be loaded or is another one.
        """
        header = self.history.header
        with announced(f"loading {options.model or header.model} ..."), own_options():
            lm = load_language_model(
                options.model or header.model,
                dtype=cast(Dtype, header.dtype),
                revision=None if options.model else header.revision,
                trust_remote_code=options.trust_remote_code,
                cache_dir=options.cache_dir,
                device_map=options.device_map,
                architecture=header.architecture,
            )
        if fingerprint(lm) != header.fingerprint:
            raise UserError(
                f"{options.model or header.model} is not the unedited model of {self.folder}: their weights differ. "
                "Give the run's own base model with --model <hub id or folder>."
            )
        base = BaseModel(lm.to(options.device or default_device()), header.layers)
        shapes = {name: tuple(weight.shape) for name, weight in base.weights.items()}
        if shapes != {matrix.name: matrix.shape for matrix in header.matrices}:
            raise UserError(
                f"The matrices that the log of {self.folder} names are not those of its model: {shapes}. Restore "
                f"{LOG_FILE} from a copy."
            )
        return base

    def weights(self, base: BaseModel, at: int | None = None) -> dict[str, Tensor]:
        """The matrices as they are scored and saved, after `at` edits or at the end.

        At the end they are read from edited.safetensors, bit for bit, if the run wrote it; else they are rebuilt.

        Raises:
            UserError: If no batch ended there, or a file is missing or damaged.
        """
        last = self.history.number_at(at)
        if last == len(self.history.entries) and self.has_final():
            return self.final()
        live = rebuild(base.weights, self.history, last)
        return restrained(base.weights, live, self.history.header.restraint)

    def final(self) -> dict[str, Tensor]:
        """The matrices of edited.safetensors, bit for bit, float32 `[d_out, d_in]` by name.

        Raises:
            UserError: If the file is missing, was altered, or is damaged.
        """
        return _read_edited(self.folder / EDITED, self.history.header.matrices, self.results.get("edited_sha256"))

    @property
    def recipe(self) -> dict[str, Any]:
        """The parts of config.yaml that say how keys and residuals became updates."""
        return {
            "method": self.section("model").get("method"),
            "statistics": self.section("model", "statistics"),
            "callbacks": self.section("trainer").get("callbacks") or [],
            "projection": self.section("projection"),
        }

    def checkpoint(self, path: Path, base: BaseModel) -> tuple[dict[str, Tensor], int]:
        """The matrices of a checkpoint as they would be scored, and how many edits they hold.

        Raises:
            UserError: If it is no checkpoint of this run.
        """
        saved = read_checkpoint(path)
        try:
            live = {name: saved["state_dict"][name].float().cpu() for name in base.weights}
            if any(live[name].shape != weight.shape for name, weight in base.weights.items()):
                raise KeyError("matrices of these shapes")
            edits = int(saved["sphere_pl"]["edits_seen"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path} is no checkpoint of {self.folder}: it lacks {error}. Give one that this run wrote, or none "
                "for the run's end."
            ) from error
        return restrained(base.weights, live, self.history.header.restraint), edits

    def has_final(self) -> bool:
        """Whether edited.safetensors is of the log's last batch; a resumed run that was killed leaves an older one."""
        path = self.folder / EDITED
        if not path.exists():
            return False
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("sphere_pl", "{}"))
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"{path} is damaged: {error}. Delete it to rebuild the weights from the log.") from error
        return bool(about.get("edits") == self.history.edits)


def save_matrices(
    path: Path, matrices: Sequence[Matrix], weights: Mapping[str, Tensor], about: Mapping[str, Any]
) -> None:
    """Write matrices, `[d_out, d_in]` by name, in the model's layout."""
    from safetensors.torch import save_file

    tensors = {
        each.name: (weights[each.name].T if each.transposed else weights[each.name]).detach().cpu().contiguous()
        for each in matrices
    }
    # One entry: safetensors writes several in an order that changes from process to process.
    metadata = {"sphere_pl": json.dumps(dict(about), sort_keys=True)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of the command line's, or one of a plain Lightning trainer's, without executing code from it.

    Raises:
        UserError: If it cannot be read.
    """
    if not zipfile.is_zipfile(path):  # as PyTorch's own files are
        return read_run_checkpoint(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises what it likes
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{path} could not be read as a checkpoint without executing code: {reason} Give a checkpoint that "
            "`python -m sphere_pl fit` wrote."
        ) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} is no checkpoint of an editing run. Give one that `python -m sphere_pl fit` wrote.")
    return checkpoint


def _read_edited(path: Path, matrices: Sequence[Matrix], sha256: str | None) -> dict[str, Tensor]:
    """Read edited.safetensors, which is in the model's layout, as float32 `[d_out, d_in]`."""
    from safetensors.torch import load

    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} could not be read: {error}. Delete it to rebuild the weights from the log.") from error
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(
            f"{path} has another SHA-256 than {RESULTS} says: it was altered or damaged. Delete it to rebuild the "
            "weights from the edit log."
        )
    try:
        tensors = load(data)
        return {
            each.name: (tensors[each.name].T if each.transposed else tensors[each.name]).float().contiguous()
            for each in matrices
        }
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{path} does not hold the edited matrices: {error}. Delete it to rebuild them.") from error
