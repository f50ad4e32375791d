"""The edits as a PEFT LoRA adapter, which peft, vLLM and SGLang add to the unedited model.

A change of rank r is exactly a LoRA of rank r: `lora_B @ lora_A` with alpha = r, which makes peft's scale 1. All
matrices get one rank, the largest, with zeros for what they have less: vLLM knows no rank of a single matrix.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sphere_pl.errors import UserError
from sphere_pl.history.delta import check_matrix, layout_of, read_with_layout
from sphere_pl.history.entries import Header
from sphere_pl.history.low_rank import ROUNDING, Factors, compress, expand
from sphere_pl.storage.files import write_text

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `vllm serve --max-lora-rank` takes."""
_KIND = "sphere_pl_adapter"
_PREFIX = "base_model.model."


class Adapter(NamedTuple):
    """The changes of all matrices as factors of one rank.

    Attributes:
        factors: `B [d_out, r]` and `A [r, d_in]` of each matrix, by name.
        left_out: Frobenius norm of what the factors leave out, as a share of the change's, by name.
    """

    factors: dict[str, Factors]
    left_out: dict[str, float]

    @property
    def rank(self) -> int:
        """The common rank."""
        return next(iter(self.factors.values())).rank

    @property
    def error(self) -> float:
        """The largest share that is left out of a matrix."""
        return max(self.left_out.values())

    @property
    def vllm_rank(self) -> int | None:
        """The smallest `--max-lora-rank` of vLLM that loads it; None if none does."""
        return next((rank for rank in VLLM_RANKS if rank >= self.rank), None)


def find_adapter(
    base: Mapping[str, Tensor], weights: Mapping[str, Tensor], edits: int, rank: int | None = None
) -> Adapter:
    """Find the factors of what has changed.

    Args:
        base: Unedited matrices, float32 `[d_out, d_in]`, by name.
        weights: Edited matrices, the same.
        edits: How many edits they hold: the rank to expect.
        rank: The largest rank to use; as many as it takes if None.

    Raises:
        UserError: If the changes have full rank and no rank is given; it says what each rank would leave out.
    """
    # float64: the difference of two float32 numbers need not be one.
    changes = {name: weight.double() - base[name].double() for name, weight in weights.items()}
    found: dict[str, Factors] = {}
    for name, change in changes.items():
        noise = ROUNDING * float(torch.linalg.matrix_norm(weights[name]))
        compressed = compress(change.float(), max(1, edits), noise)
        if isinstance(compressed, Factors):
            found[name] = best_part(change, compressed.rank) if compressed.rank else compressed
        elif rank is None:
            raise _full_rank(changes)
    if rank is None:
        rank = max(1, *(factors.rank for factors in found.values()))
    best = {
        name: found[name] if name in found and found[name].rank <= rank else best_part(change, rank)
        for name, change in changes.items()
    }
    common = max(1, *(factors.rank for factors in best.values()))
    left_out = {name: _left_out(changes[name], factors) for name, factors in best.items()}
    return Adapter({name: _padded(factors, common) for name, factors in best.items()}, left_out)


def best_part(change: Tensor, rank: int) -> Factors:
    """The nearest matrix of a rank (Eckart and Young 1936), by the eigenvectors of the smaller Gram matrix.

    Example:
        >>> best_part(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 2).rank
        2
    """
    wide = change.double()
    tall = wide.shape[0] > wide.shape[1]
    _, vectors = torch.linalg.eigh(wide.T @ wide if tall else wide @ wide.T)  # ascending
    chosen = vectors[:, -min(rank, vectors.shape[1]) :]
    factors = Factors(wide @ chosen, chosen.T) if tall else Factors(chosen, chosen.T @ wide)
    return Factors(*(factor.float().contiguous() for factor in factors))


def _left_out(change: Tensor, factors: Factors) -> float:
    norm = float(torch.linalg.matrix_norm(change))
    return float(torch.linalg.matrix_norm(change - expand(factors).double())) / norm if norm else 0.0


def _padded(factors: Factors, rank: int) -> Factors:
    missing = rank - factors.rank
    left = nn.functional.pad(factors.left, (0, missing))
    return Factors(left.contiguous(), nn.functional.pad(factors.right, (0, 0, 0, missing)).contiguous())


def _full_rank(changes: Mapping[str, Tensor]) -> UserError:
    spectra = [torch.linalg.svdvals(change.double()).square() for change in changes.values()]
    size = min(len(spectrum) for spectrum in spectra)
    shares = []
    for rank in (each for each in VLLM_RANKS if 8 <= each < size):
        left = max(float((spectrum[rank:].sum() / spectrum.sum()).sqrt()) for spectrum in spectra)
        shares.append(f"rank {rank} leaves out {left:.1%}")
    return UserError(
        "The changes of this run have full rank (as those of RECT, FT and LocFT-BF do, and of very many edits): no "
        "adapter smaller than the matrices holds them. Export the whole model, or the best part of a smaller rank with "
        f"--adapter_rank K: {', '.join(shares) or 'any rank would leave out most'}."
    )


def save_adapter(folder: Path, header: Header, adapter: Adapter, base: Mapping[str, Tensor], name: str) -> None:
    """Write adapter_model.safetensors and adapter_config.json as peft does.

    Args:
        folder: Where.
        header: The run's model and matrices.
        adapter: What to write.
        base: Unedited matrices, float32 `[d_out, d_in]`, by name; a few entries are noted to recognise the model by.
        name: Hub id of the base model, or how to call it.
    """
    tensors: dict[str, Tensor] = {}
    for matrix, factors in adapter.factors.items():
        tensors[f"{_PREFIX}{_module(matrix)}.lora_A.weight"] = factors.right
        tensors[f"{_PREFIX}{_module(matrix)}.lora_B.weight"] = factors.left
    about = {"format": 1, "dtype": header.dtype, "matrices": layout_of(header, base)}
    # One entry of ours: safetensors writes several in an order that changes from process to process.
    save_file(tensors, folder / WEIGHTS, metadata={_KIND: json.dumps(about, sort_keys=True)})
    write_text(folder / CONFIG, json.dumps(_config(header, adapter, name), indent=2))


def _config(header: Header, adapter: Adapter, name: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": header.revision,
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": adapter.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(matrix.transposed for matrix in header.matrices),
        "target_modules": [_module(matrix.name) for matrix in header.matrices],
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }


def _module(matrix: str) -> str:
    return matrix.removesuffix(".weight")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (folder / CONFIG).is_file()


def base_of(folder: Path) -> tuple[str, str | None]:
    """Name and revision of the base model that an adapter names.

    Raises:
        UserError: If its configuration cannot be read.
    """
    config = _read_config(folder)
    return str(config.get("base_model_name_or_path") or ""), config.get("revision")


def adapted(folder: Path, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The matrices of a model with an adapter that `export --adapter` wrote, float32 and in its layout, by name.

    Args:
        folder: The adapter's.
        parameters: The unedited model's parameters, by name.

    Raises:
        UserError: If it is no such adapter, or was made for another model.
    """
    path = folder / WEIGHTS
    layout, tensors = _read(path)
    config = _read_config(folder)
    scale = float(config.get("lora_alpha", 1)) / float(config.get("r", 1))
    found: dict[str, Tensor] = {}
    for name, about in layout.items():
        check_matrix(parameters, name, about, path)
        key = f"{_PREFIX}{_module(name)}"
        try:
            change = tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
        except (KeyError, RuntimeError) as error:
            raise UserError(
                f"{path} is damaged: the factors of {name} are missing or do not fit ({error}). Export it again."
            ) from error
        stored = parameters[name].detach().float().cpu()
        found[name] = stored + scale * (change.T if about["transposed"] else change)
    return found


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        layout, tensors = read_with_layout(path, _KIND)
    except ValueError as error:
        raise UserError(
            f"{path} is no adapter that `python -m sphere_pl export --adapter` wrote ({error}). Others are loaded with "
            "peft: PeftModel.from_pretrained(model, folder)."
        ) from error
    return layout, {name: tensor.float() for name, tensor in tensors.items()}


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} could not be read: {error}. Export the adapter again.") from error
    return config if isinstance(config, dict) else {}


def bytes_per_edit(adapter: Adapter, edits: int, bytes_per_number: int = 4) -> float:
    """Size of the factors for each edit, as they are written."""
    numbers = sum(factors.left.numel() + factors.right.numel() for factors in adapter.factors.values())
    return numbers * bytes_per_number / max(1, edits)


def advice(adapter: Adapter, ranks: Sequence[int] = VLLM_RANKS) -> str:
    """What to tell vLLM about an adapter."""
    if adapter.vllm_rank is None:
        return (
            f"vLLM loads adapters of rank {ranks[-1]} at most: serve the whole exported model, or the best part with "
            f"--adapter_rank {ranks[-1]}."
        )
    return f"For vLLM: --enable-lora --max-lora-rank {adapter.vllm_rank}."
