"""What lies at the place that a model's name points to, before any of it is loaded.

Nothing here reads weights: names, sizes and headers of files tell all that these checks need.
"""

import difflib
import json
import os
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors import SafetensorError, safe_open

from sphere_pl.errors import UserError
from sphere_pl.model.embedded import EMBEDDED_MODEL
from sphere_pl.storage.files import expanded
from sphere_pl.text.names import option

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".gguf", ".pth", ".pt", ".ckpt", ".h5", ".msgpack", ".onnx"}
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_POINTER = b"version https://git-lfs"
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.(safetensors|bin|gguf)$")
_LOOKED_AT = 2000  # names that are compared with one that leads nowhere


def local_model(name: str) -> Path | None:
    """Find the local file or folder that a name stands for.

    Args:
        name: What the user gave.

    Returns:
        The path, or None if the name can only be a hub id.

    Raises:
        UserError: If there is nothing of that name and no hub id can look like this.
    """
    if not name.strip():
        raise UserError("The model has no name. Give --model.name a model folder, a GGUF file or a hub id.")
    path = expanded(name)
    if _exists(path):
        return path
    if "://" in name:
        raise UserError(
            f"The model {name!r} is an address. Give --model.name the hub id alone, such as organisation/model."
        )
    if os.path.lexists(path):
        raise UserError(
            f"The model {name!r} is a link to {os.path.realpath(path)!r}, which is not there. Mend the link."
        )
    if _looks_local(name):
        raise UserError(
            f"The model {name!r} is neither a file nor a folder (looked for {str(path.absolute())!r})."
            f"{suggestion(name)} Give --model.name a model folder, a GGUF file or a hub id."
        )
    return None


def label_of(name: str) -> str:
    """A short name of a model, for folders and tables.

    Example:
        >>> label_of("models/tiny/"), label_of("organisation/model"), label_of("a/b.Q4_1.gguf")
        ('tiny', 'model', 'b.Q4_1')
    """
    path = expanded(name)
    if path.name in {"", ".."}:
        path = path.resolve()
    return path.stem if path.suffix == ".gguf" else path.name


def lasting_name(name: str) -> str:
    """A name that leads to the same model from any folder: a path is made absolute, another name stays as it is."""
    path = expanded(name)
    if name == EMBEDDED_MODEL or not _exists(path):
        return name
    # A file in the hub's cache is a link to one without its suffix.
    return str(path.resolve() if path.is_dir() else path.absolute())


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long for a file
        return False


def _looks_local(name: str) -> bool:
    """Whether a name can be no hub id, or is a path in all likelihood."""
    if name.startswith((".", "/", "~", "\\")) or "\\" in name or Path(name).suffix in _WEIGHT_SUFFIXES:
        return True
    try:
        validate_repo_id(name)
    except HFValidationError:
        return True
    return False


def suggestion(name: str) -> str:
    """The nearest thing to a name that leads nowhere, as a sentence that begins with a space; empty if there is none.

    Looked through are the folder that the name points into, models in this folder and one level below, and the hub's
    cache.
    """
    wanted = expanded(name)
    beside = {str(wanted.parent / found): found for found in _names(wanted.parent)}
    near = {str(path): path.name for path in islice(_models_near(), _LOOKED_AT)}
    cached = {found: found.rpartition("/")[2] for found in _cached_ids()}
    for places in (beside, near, {EMBEDDED_MODEL: EMBEDDED_MODEL}, cached):
        matches = difflib.get_close_matches(wanted.name, sorted(set(places.values())), n=1, cutoff=0.75)
        if matches:
            return f" Did you mean {next(place for place, found in places.items() if found == matches[0])}?"
    return ""


def _names(folder: Path) -> list[str]:
    try:
        return list(islice((entry.name for entry in os.scandir(folder)), _LOOKED_AT))
    except OSError:
        return []


def _models_near() -> Iterator[Path]:
    """Model folders and GGUF files here and one level below."""
    here = Path()
    folders = [here / name for name in _names(here) if not name.startswith(".")]
    below = chain.from_iterable((folder / name for name in _names(folder)) for folder in folders if folder.is_dir())
    for path in chain(folders, below):
        if path.suffix == ".gguf" or (path / "config.json").is_file():
            yield path


def _cached_ids() -> list[str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    return [
        name.removeprefix("models--").replace("--", "/") for name in _names(Path(HF_HUB_CACHE)) if name[:6] == "models"
    ]


def gguf_of(path: Path) -> Path | None:
    """The GGUF file to load: the path itself, or the only one in a folder that holds no other weights.

    Raises:
        UserError: If a folder holds several, or the file is a part of one, a pointer or no GGUF file.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix == ".gguf" and not file.name.startswith("mmproj"))
        if not files or _has_weights(path):
            return None
        if len(files) > 1 and not _SHARD.search(files[0].name):
            names = ", ".join(file.name for file in files)
            raise UserError(f"The model {str(path)!r} is a folder of several GGUF files ({names}). Name one of them.")
        path = files[0]
    if path.suffix != ".gguf" and not _begins(path, b"GGUF"):
        return None
    _check_gguf(path)
    return path


def _check_gguf(path: Path) -> None:
    check_pointer(path)
    if _SHARD.search(path.name):
        raise UserError(
            f"The model {str(path)!r} is one part of a split GGUF file. Put the parts together with llama.cpp's "
            "`llama-gguf-split --merge FIRST_PART WHOLE.gguf` and name the whole."
        )
    if not _begins(path, b"GGUF"):
        raise UserError(f"The model {str(path)!r} is no GGUF file, whatever its name says. Fetch it again.")


def _begins(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def check_pointer(path: Path) -> None:
    """Refuse a Git LFS pointer in place of a file.

    Raises:
        UserError: If it is one.
    """
    if _begins(path, _POINTER):
        raise UserError(
            f"{path} is a Git LFS pointer, not the file itself. Run `git lfs install` and `git lfs pull` in "
            f"{path.parent}, or fetch the model with `hf download`."
        )


def check_folder(path: Path) -> None:
    """Refuse what cannot be loaded from a local folder, by what lies in it.

    Raises:
        UserError: Saying what it is and what to do.
    """
    if not path.is_dir():
        raise UserError(f"The model {str(path)!r} is a single file{_inside_of(path)}")
    if not any(path.iterdir()):
        raise UserError(f"The model {str(path)!r} is an empty folder. Name the folder that holds config.json.")
    check_adapter(str(path), path / "adapter_config.json")
    for file in path.iterdir():
        if file.is_file() and file.suffix in {*_WEIGHT_SUFFIXES, ".json", ".model", ".txt"}:
            check_pointer(file)
    config = _config(path)
    if "transformers_weights" not in config:
        _check_weights(path)
    if not any(_names_like(path, _TOKENIZER)) and not list(path.glob("*.tiktoken")):
        raise UserError(
            f"The model {str(path)!r} has no tokenizer: none of {', '.join(_TOKENIZER)} is there. Copy the tokenizer "
            "of the model that it was made from beside it."
        )


def _inside_of(path: Path) -> str:
    if (path.parent / "config.json").is_file():
        return f" of a model. Give --model.name its folder, {path.parent}."
    for folder in (path.parent, path.parent.parent):
        if _is_run(folder):
            command = f"export {option('--run_dir', folder)}"
            return f" of a run. Write the edited model with `{command}` and name what this writes."
    return ", which is no GGUF file. Give --model.name a folder with config.json, the weights and a tokenizer."


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("edits.jsonl", "results.json", "config.yaml"))


def check_adapter(name: str, path: Path) -> None:
    """Refuse an adapter: its base model is not what would be edited.

    Args:
        name: The model's name.
        path: Its adapter_config.json, which need not be there.

    Raises:
        UserError: Naming the base model.
    """
    if not path.is_file():
        return
    check_pointer(path)
    base = _json(path).get("base_model_name_or_path") or "unknown"
    raise UserError(
        f"The model {name!r} is an adapter (PEFT) of the base model {base}. Merge it first: "
        "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder), save the tokenizer "
        "there too, and name that folder."
    )


def _config(path: Path) -> dict[str, Any]:
    """The folder's config.json."""
    file = path / "config.json"
    if file.is_file():
        config = _json(file)
        if not config.get("model_type"):
            raise UserError(f"{file} names no model_type, so it is no transformers model's. Fetch the model again.")
        return config
    if _is_run(path):
        raise UserError(
            f"The model {str(path)!r} is a run's folder. Write its edited model with "
            f"`export {option('--run_dir', path)}` and name the folder that this writes."
        )
    if (path / "params.json").is_file():
        raise UserError(
            f"The model {str(path)!r} is in its maker's own format (params.json). Fetch the transformers version, with "
            "config.json and model.safetensors, or convert it."
        )
    # A folder of checkpoints, or one in the hub's cache.
    inside = next((found.parent for level in ("*", "snapshots/*") for found in path.glob(f"{level}/config.json")), None)
    hint = f" Did you mean {inside}?" if inside else " Copy it from the model that the weights belong to."
    raise UserError(f"The model {str(path)!r} is a folder without config.json.{hint}")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no valid JSON ({error}). Fetch the model again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object. Fetch the model again.")
    return value


def _names_like(path: Path, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if (path / name).is_file()]


def _has_weights(path: Path) -> bool:
    return any((path / f"{name}{end}").is_file() for name in _WEIGHTS for end in ("", _INDEX))


def _check_weights(path: Path) -> None:
    """Refuse a folder whose weights are missing, incomplete or cut off."""
    names = _names_like(path, _WEIGHTS[:1]) or _shards(path)
    if not names and not (path / _WEIGHTS[1]).is_file():
        others = sorted(file.name for file in path.iterdir() if file.suffix in _WEIGHT_SUFFIXES)
        found = f"the only weights there are {', '.join(others[:3])}" if others else "it holds no weights at all"
        split = any(_SHARD.search(name) for name in others)
        remedy = "Fetch the index too (model.safetensors.index.json)." if split else f"Put {_WEIGHTS[0]} there."
        raise UserError(f"The model {str(path)!r} cannot be read: {found}. {remedy}")
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise UserError(
            f"The model {str(path)!r} is incomplete: {len(missing)} of its {len(names)} weight files are missing "
            f"({', '.join(missing[:3])}). Fetch the model again."
        )
    for name in names:
        if name.endswith(".safetensors"):
            _check_header(path / name)


def _shards(path: Path) -> list[str]:
    """The files that the index of a model in several files names; empty without an index."""
    for name in _WEIGHTS:
        index = path / f"{name}{_INDEX}"
        if index.is_file():
            weights = _json(index).get("weight_map")
            if not isinstance(weights, dict) or not weights:
                raise UserError(f"{index} names no weight files (no `weight_map`). Fetch the model again.")
            return sorted({str(shard) for shard in weights.values()})
    return []


def _check_header(path: Path) -> None:
    try:
        with safe_open(path, "numpy"):  # reads the header and compares it with the size; "pt" would import torch
            pass
    except SafetensorError as error:
        raise UserError(
            f"{path} is damaged or was cut off ({error}; {path.stat().st_size} bytes). Fetch it again."
        ) from error
