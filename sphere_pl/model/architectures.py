"""Where each model family keeps its blocks and the matrices that editing changes: the one table `ARCHITECTURES`.

It is keyed by `config.model_type`; a user's own entry is a dictionary with the same names (`architecture_of`). Nothing
in this package looks at a model's name or path, and nothing in this module needs torch.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from sphere_pl.errors import UserError

if TYPE_CHECKING:
    from torch import nn


class Architecture(NamedTuple):
    """Module paths of one model family, `{}` standing for the layer number, and the factors that it multiplies by.

    A factor is the name of a number of the block or of the configuration, `residual_multiplier`; `mlp_multipliers.1`
    is an item of a list, and `1/logits_scaling` divides; or the number itself, `0.25`.

    Attributes:
        block: A decoder block.
        projection: The MLP's down-projection inside the block: the key-value memory that editing writes to.
        final_norm: The normalisation between the last block and the language-model head.
        attention: The self-attention inside the block.
        fan_in_fan_out: True if the projection stores its weight as `[d_in, d_out]` (GPT-2's Conv1D).
        output_norm: The norm inside the block that the MLP's output passes through before it is added to the stream.
        output_scale: Factor of the MLP's output, after the norm.
        logit_scale: Factor of the logits.
        shared_expert: The down-projection in blocks of experts that every token passes through, added as it is.
        experts: The routed experts inside the block: where these are all there is, no matrix can be edited.
        mixers: Other modules inside the block that read earlier tokens, in the place of attention or beside it.
        recurrent: Whether such a module keeps a state instead of keys and values: prompts run whole then.
    """

    block: str
    projection: str
    final_norm: str
    attention: str = "self_attn"
    fan_in_fan_out: bool = False
    output_norm: str = ""
    output_scale: str = ""
    logit_scale: str = ""
    shared_expert: str = ""
    experts: str = "mlp.experts"
    mixers: tuple[str, ...] = ()
    recurrent: bool = False

    def projection_in(self, block: "nn.Module") -> str:
        """Path of the matrix to edit inside a block; empty if it has none."""
        return next((path for path in (self.projection, self.shared_expert) if path and has_module(block, path)), "")

    @property
    def mlp(self) -> str:
        """The MLP inside the block, its experts included.

        Example:
            >>> architecture_of("lfm2").mlp
            'feed_forward'
        """
        return self.projection.rpartition(".")[0]

    def mlp_in(self, block: "nn.Module") -> str:
        """Path of the MLP inside a block, or of the one matrix that a block has in its place."""
        edited = self.projection_in(block)
        paths = (self.mlp, self.projection, edited.rpartition(".")[0], edited, self.experts.partition(".")[0])
        return next((path for path in paths if path and has_module(block, path)), "")

    def mixers_in(self, block: "nn.Module") -> list[str]:
        """Paths of the modules of a block that read earlier tokens, but for one that holds the matrix to edit."""
        edited = self.projection_in(block)
        paths = (path for path in (self.attention, *self.mixers) if not edited.startswith(f"{path}."))
        return [path for path in paths if has_module(block, path)]


_LLAMA = Architecture("model.layers.{}", "mlp.down_proj", "model.norm")
_GPT2 = Architecture("transformer.h.{}", "mlp.c_proj", "transformer.ln_f", "attn", fan_in_fan_out=True)
_NORMED = _LLAMA._replace(output_norm="post_feedforward_layernorm")
_COHERE = _LLAMA._replace(logit_scale="logit_scale")
_SHARED = _LLAMA._replace(shared_expert="mlp.shared_experts.down_proj")
_QWEN3_5 = _LLAMA._replace(mixers=("linear_attn",), recurrent=True)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "olmo", "phi3", "glm", "smollm3"), _LLAMA),
        **dict.fromkeys(("ministral3", "seed_oss", "apertus", "hunyuan_v1_dense", "arcee", "nemotron"), _LLAMA),
        "stablelm": _LLAMA,
        "qwen3_5": _QWEN3_5,
        "qwen3_5_text": _QWEN3_5,
        "phi": Architecture("model.layers.{}", "mlp.fc2", "model.final_layernorm"),
        "starcoder2": Architecture("model.layers.{}", "mlp.c_proj", "model.norm"),
        "lfm2": Architecture(
            "model.layers.{}", "feed_forward.w2", "model.embedding_norm", mixers=("conv",), recurrent=True
        ),
        "gpt2": _GPT2,
        "gpt_neox": Architecture("gpt_neox.layers.{}", "mlp.dense_4h_to_h", "gpt_neox.final_layer_norm", "attention"),
        "gptj": Architecture("transformer.h.{}", "mlp.fc_out", "transformer.ln_f", "attn"),
        "falcon": Architecture("transformer.h.{}", "mlp.dense_4h_to_h", "transformer.ln_f", "self_attention"),
        "cohere": _COHERE,
        "cohere2": _COHERE,
        **dict.fromkeys(("gemma2", "gemma3_text", "olmo2", "olmo3", "exaone4"), _NORMED),
        "gemma3": _NORMED._replace(block="model.language_model.layers.{}", final_norm="model.language_model.norm"),
        "glm4": _LLAMA._replace(output_norm="post_mlp_layernorm"),
        "granite": _LLAMA._replace(output_scale="residual_multiplier", logit_scale="1/logits_scaling"),
        "minicpm3": _LLAMA._replace(output_scale="residual_scale", logit_scale="1/logits_scaling"),
        "falcon_h1": Architecture(
            "model.layers.{}",
            "feed_forward.down_proj",
            "model.final_layernorm",
            output_scale="mlp_multipliers.1",
            logit_scale="lm_head_multiplier",
            mixers=("mamba",),
            recurrent=True,
        ),
        **dict.fromkeys(("deepseek_v3", "glm4_moe", "dots1"), _SHARED),
        **dict.fromkeys(("mixtral", "qwen3_moe", "gpt_oss"), _LLAMA),  # dense blocks, if they have any
    }
)


_LENGTHS = (  # what configurations call the number of tokens that a model reads
    *("max_position_embeddings", "max_seq_len", "max_sequence_length", "model_max_length"),
    *("seq_length", "context_length", "n_positions"),
)
_LONG_ROPE = {"longrope", "su"}  # `su` in configurations of its first release
_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = MappingProxyType(
    {
        "fan_in_fan_out": ((bool,), "true or false"),
        "recurrent": ((bool,), "true or false"),
        "mixers": ((list, tuple), "a list of module paths"),
    }
)


def is_described(model_type: str, own: Mapping[str, Any] | None = None) -> bool:
    """Whether a family is in the table, or `own` describes it; the parts of another are found on the model itself.

    Raises:
        UserError: If `own` is no description.

    Example:
        >>> is_described("gpt2"), is_described("mine"), is_described("mine", {"final_norm": "norm"})
        (True, False, False)
    """
    _check_own(own or {})
    return model_type in ARCHITECTURES or all(name in (own or {}) for name in Architecture._fields[:3])


def architecture_of(model_type: str, own: Mapping[str, Any] | None = None) -> Architecture:
    """Look up the architecture of a `config.model_type`.

    Args:
        model_type: The family.
        own: Attributes of `Architecture` that replace those of the table, or stand alone for a family not in it.

    Raises:
        UserError: If the family is not in the table and `own` does not describe it.

    Example:
        >>> architecture_of("gpt2").fan_in_fan_out
        True
        >>> architecture_of("mine", {"block": "h.{}", "projection": "mlp.out", "final_norm": "norm"}).attention
        'self_attn'
    """
    _check_own(own or {})
    known = ARCHITECTURES.get(model_type)
    if known is None:
        missing = [name for name in Architecture._fields[:3] if name not in (own or {})]
        if missing:
            raise UserError(
                f"The model's config.model_type is {model_type!r}, which is not supported. "
                f"Known types: {', '.join(sorted(ARCHITECTURES))}. Describe another decoder with "
                '--model.architecture=\'{"block": "model.layers.{}", "projection": "mlp.down_proj", '
                f'"final_norm": "model.norm"}}\' (missing: {", ".join(missing)}); docs/models.md explains the names.'
            )
        known = Architecture(**{name: (own or {})[name] for name in Architecture._fields[:3]})
    return corrected(known, own or {})


def corrected(known: Architecture, own: Mapping[str, Any]) -> Architecture:
    """An architecture with the user's own entries in the place of its own."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in own.items()}
    return known._replace(**values)


def _check_own(own: Mapping[str, Any]) -> None:
    """Refuse entries of the user's that are no attributes of an architecture, or of another type."""
    if not isinstance(own, Mapping):
        raise UserError(f"`architecture={own!r}` must be a dictionary such as {{'block': 'model.layers.{{}}', ...}}.")
    for name, value in own.items():
        if name not in Architecture._fields:
            raise UserError(
                f"`architecture` has the entry {name!r}, which means nothing here. "
                f"It takes {', '.join(Architecture._fields)}."
            )
        kinds, what = _KINDS.get(name, ((str,), "a text"))
        if not isinstance(value, kinds):
            raise UserError(f"`architecture.{name}={value!r}` must be {what}.")
    if "{}" not in own.get("block", "{}"):
        raise UserError(
            f"`architecture.block={own['block']!r}` needs {{}} where the layer's number stands, for example "
            "'model.layers.{}'."
        )


def context_length(entry: Callable[[str], Any]) -> int | None:
    """How many tokens a model reads, where its configuration says so.

    LongRoPE turns all tokens of a pass otherwise once one text in it is longer than the first ones that the model was
    trained on, and those that are cached already stay as they are: no more than that many are read.

    Args:
        entry: From the name of an entry of the configuration to its value, None if there is none.

    Example:
        >>> scaling = {"type": "longrope", "original_max_position_embeddings": 4096}
        >>> context_length({"max_position_embeddings": 131072, "rope_scaling": scaling}.get)
        4096
    """
    longest = next((length for name in _LENGTHS if (length := entry(name)) and isinstance(length, int)), None)
    rope = entry("rope_parameters") or entry("rope_scaling") or {}
    for each in (rope, *rope.values()):  # of all layers, or of each type of them
        if longest and isinstance(each, Mapping) and each.get("rope_type", each.get("type")) in _LONG_ROPE:
            first = each.get("original_max_position_embeddings") or entry("original_max_position_embeddings")
            longest = min(longest, int(first or longest))
    return longest


def has_module(parent: "nn.Module", path: str) -> bool:
    """Whether a path names a module.

    Example:
        >>> from torch import nn
        >>> has_module(nn.Sequential(nn.ReLU()), "0"), has_module(nn.ReLU(), "mlp.down_proj")
        (True, False)
    """
    try:
        return parent.get_submodule(path) is not None
    except AttributeError:
        return False
