"""What a GGUF file says about itself, read before transformers reads it."""

from collections import Counter
from pathlib import Path
from typing import Any, Literal

from sphere_pl.errors import UserError

_FLOATS: dict[str, Literal["float32", "bfloat16"]] = {"F32": "float32", "BF16": "bfloat16"}


def gguf_dtype(path: Path) -> Literal["float32", "bfloat16", "float16"]:
    """The floating-point type of most matrices; float16 for quantised ones, whose values it holds to 11 bits.

    Raises:
        UserError: If the file is cut off, damaged or without weights.
    """
    from gguf import GGUFReader

    try:
        kinds = Counter(tensor.tensor_type.name for tensor in GGUFReader(path).tensors if len(tensor.shape) > 1)
    except (ValueError, IndexError, KeyError, TypeError) as error:  # what numpy and enum say of such bytes
        raise UserError(
            f"The GGUF file {str(path)!r} is damaged or was cut off ({path.stat().st_size} bytes). Fetch it again."
        ) from error
    if not kinds:
        raise UserError(f"The GGUF file {str(path)!r} holds no weights. Name the file that does.")
    return _FLOATS.get(kinds.most_common(1)[0][0], "float16")


def dequantized() -> dict[str, Any]:
    """What `from_pretrained` is told for the weights of a GGUF file as numbers, whatever the release.

    transformers did that unasked until it could also keep them packed; from then on there is a `GgufConfig`.
    """
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}
