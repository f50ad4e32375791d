"""Where each model family keeps its blocks and the matrices that editing changes, and what lies between both.

All knowledge about architectures is the one table `ARCHITECTURES`, keyed by `config.model_type`; a user's own entry
is a dictionary with the same names (`architecture_of`). Nothing in this package looks at a model's name or path.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sphere_pl.errors import UserError
from sphere_pl.model.output_path import DIRECT, OutputPath


class Architecture(NamedTuple):
    """Module paths of one model family, `{}` standing for the layer number, and the factors that it multiplies by.

    A factor is the name of a number of the block or of the configuration, `residual_multiplier`; `mlp_multipliers.1`
    is an item of a list, and `1/logits_scaling` divides.

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

    def projection_in(self, block: nn.Module) -> str:
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

    def mixers_in(self, block: nn.Module) -> list[str]:
        """Paths of the modules of a block that read earlier tokens."""
        return [path for path in (self.attention, *self.mixers) if has_module(block, path)]


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


_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = MappingProxyType(
    {
        "fan_in_fan_out": ((bool,), "true or false"),
        "recurrent": ((bool,), "true or false"),
        "mixers": ((list, tuple), "a list of module paths"),
    }
)


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
    given = own or {}
    lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    values: dict[str, Any] = {**given, **lists}
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


def has_module(parent: nn.Module, path: str) -> bool:
    """Whether a path names a module.

    Example:
        >>> has_module(nn.Sequential(nn.ReLU()), "0"), has_module(nn.ReLU(), "mlp.down_proj")
        (True, False)
    """
    try:
        return parent.get_submodule(path) is not None
    except AttributeError:
        return False


def read_factor(spec: str, *places: object) -> float:
    """Read a factor of an architecture from the first of `places` that has it; 1 if the family has none.

    Raises:
        UserError: If it is in none of them, or is no number.

    Example:
        >>> from types import SimpleNamespace
        >>> config = SimpleNamespace(logits_scaling=8, mlp_multipliers=[1.0, 0.5])
        >>> read_factor("1/logits_scaling", config), read_factor("mlp_multipliers.1", config), read_factor("", config)
        (0.125, 0.5, 1.0)
    """
    if not spec:
        return 1.0
    name, _, item = spec.removeprefix("1/").partition(".")
    found = next((getattr(place, name) for place in places if getattr(place, name, None) is not None), None)
    try:
        value = float(found[int(item)] if item else found)  # type: ignore[index, arg-type]
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"The factor {spec!r} of the model's architecture is no number of its blocks or its configuration. "
            "Name one that is, or leave the entry empty."
        ) from error
    return 1 / value if spec.startswith("1/") else value


class EditSite(NamedTuple):
    """One matrix that editing changes.

    Attributes:
        layer: Number of the block.
        name: Hugging Face name of the parameter.
        module: The module whose input is the key `k` and whose weight maps it to the value, `v = W k`.
        fan_in_fan_out: True if the module stores the transpose of `W`.
        path: Where the module is inside its block.
        output: What the residual stream gains by the module's output.
    """

    layer: int
    name: str
    module: nn.Module
    fan_in_fan_out: bool
    path: str = ""
    output: OutputPath = DIRECT

    @property
    def stored(self) -> Tensor:
        """The model's own tensor in the model's dtype and layout."""
        weight = self.module.weight
        if not isinstance(weight, Tensor):
            raise TypeError(f"{self.name} is not a tensor")
        return weight

    def read(self) -> Tensor:
        """Copy the weight as float32 `[d_out, d_in]`."""
        stored = self.stored.detach()
        return (stored.T if self.fan_in_fan_out else stored).to(torch.float32, copy=True).contiguous()

    @torch.no_grad()
    def write(self, weight: Tensor) -> None:
        """Set the model's own tensor from `weight` of shape `[d_out, d_in]`, rounding to the model's dtype."""
        self.stored.copy_(weight.T if self.fan_in_fan_out else weight)


def edit_sites(
    model: nn.Module, architecture: Architecture, config: object, layers: list[int], n_layers: int
) -> list[EditSite]:
    """Find the matrices to edit, shallow to deep.

    Args:
        model: A Hugging Face causal language model.
        architecture: Where its parts are.
        config: Its configuration, which holds the factors that blocks do not.
        layers: Numbers of the blocks to edit.
        n_layers: How many blocks the model has.

    Raises:
        UserError: If a layer lies outside the model or has no matrix to edit, or the layers do not ascend: the
            residual is shared over the layers that are left, which only makes sense from shallow to deep.
    """
    check_layers(layers, n_layers)
    blocks = [model.get_submodule(architecture.block.format(layer)) for layer in range(n_layers)]
    _check_editable(architecture, blocks, layers)
    return [_site(architecture, config, layer, blocks[layer]) for layer in layers]


def _site(architecture: Architecture, config: object, layer: int, block: nn.Module) -> EditSite:
    path = architecture.projection_in(block)
    return EditSite(
        layer,
        f"{architecture.block.format(layer)}.{path}.weight",
        block.get_submodule(path),
        architecture.fan_in_fan_out,
        path,
        output_path(architecture, config, block),
    )


def output_path(architecture: Architecture, config: object, block: nn.Module) -> OutputPath:
    """What lies between the edited matrix of a block and the residual stream.

    Raises:
        UserError: If the output norm is no module of the block, or the factor no number.
    """
    if architecture.output_norm and not has_module(block, architecture.output_norm):
        raise UserError(
            f"The model's architecture names the output norm {architecture.output_norm!r}, which is no module of its "
            f"blocks. They hold {', '.join(name for name, _ in block.named_children())}."
        )
    norm = block.get_submodule(architecture.output_norm) if architecture.output_norm else None
    return OutputPath(norm, read_factor(architecture.output_scale, block, config))


def editable_layers(architecture: Architecture, blocks: Sequence[nn.Module]) -> list[int]:
    """Numbers of the blocks that have a matrix to edit."""
    return [layer for layer, block in enumerate(blocks) if architecture.projection_in(block)]


def _check_editable(architecture: Architecture, blocks: list[nn.Module], layers: list[int]) -> None:
    """Refuse layers without a matrix to edit, naming those that have one."""
    editable = editable_layers(architecture, blocks)
    for layer in layers:
        if layer in editable:
            continue
        others = f"Layers with one: {', '.join(map(str, editable))}." if editable else "No layer of the model has one."
        if has_module(blocks[layer], architecture.experts):
            raise UserError(
                f"Layer {layer} consists of routed experts, which stand in the way: each token passes through a few of "
                "them only, and there is no one matrix that all tokens pass through, which is what is edited. "
                f"{others}"
            )
        raise UserError(
            f"Layer {layer} has no module {architecture.projection!r}, the matrix to edit. {others} "
            "--model.architecture names another."
        )


def check_layers(layers: list[int], n_layers: int) -> None:
    """Refuse layers that cannot be edited.

    Args:
        layers: Numbers of the blocks to edit.
        n_layers: How many blocks the model has.

    Raises:
        UserError: See `edit_sites`.
    """
    if not layers:
        raise UserError("`layers=[]` names no layer to edit. Name at least one, for example --model.layers=[4,5].")
    outside = [layer for layer in layers if not 0 <= layer < n_layers]
    if outside:
        raise UserError(
            f"`layers={layers}` names layer {outside[0]}, but this model has layers 0 to {n_layers - 1}. "
            "Choose layers inside the model, for example with --model.layers=[4,5]."
        )
    if sorted(set(layers)) != layers:
        raise UserError(f"`layers={layers}` must ascend without repetition, for example {sorted(set(layers))}.")
