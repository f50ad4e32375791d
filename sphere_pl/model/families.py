"""Where each model family keeps its blocks and the matrices that editing changes.

All knowledge about architectures is the one table `ARCHITECTURES`, keyed by `config.model_type`. Nothing in this
package looks at a model's name or path.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sphere_pl.errors import UserError


class Architecture(NamedTuple):
    """Module paths of one model family, `{}` standing for the layer number.

    Attributes:
        block: A decoder block.
        projection: The MLP's down-projection inside the block: the key-value memory that editing writes to.
        final_norm: The normalisation between the last block and the language-model head.
        attention: The self-attention inside the block.
        fan_in_fan_out: True if the projection stores its weight as `[d_in, d_out]` (GPT-2's Conv1D).
    """

    block: str
    projection: str
    final_norm: str
    attention: str = "self_attn"
    fan_in_fan_out: bool = False

    @property
    def mlp(self) -> str:
        """The MLP inside the block.

        Example:
            >>> architecture_of("phi").mlp
            'mlp'
        """
        return self.projection.rpartition(".")[0]


_LLAMA = Architecture("model.layers.{}", "mlp.down_proj", "model.norm")
_GPT2 = Architecture("transformer.h.{}", "mlp.c_proj", "transformer.ln_f", "attn", fan_in_fan_out=True)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "llama": _LLAMA,
        "mistral": _LLAMA,
        "qwen2": _LLAMA,
        "qwen3": _LLAMA,
        "gemma2": _LLAMA,
        "gemma3_text": _LLAMA,
        "gemma3": Architecture("model.language_model.layers.{}", "mlp.down_proj", "model.language_model.norm"),
        "phi": Architecture("model.layers.{}", "mlp.fc2", "model.final_layernorm"),
        "gpt2": _GPT2,
        "gpt_neox": Architecture("gpt_neox.layers.{}", "mlp.dense_4h_to_h", "gpt_neox.final_layer_norm", "attention"),
        "gptj": Architecture("transformer.h.{}", "mlp.fc_out", "transformer.ln_f", "attn"),
    }
)


def architecture_of(model_type: str) -> Architecture:
    """Look up the architecture of a `config.model_type`.

    Raises:
        UserError: If the family is not in the table.

    Example:
        >>> architecture_of("gpt2").fan_in_fan_out
        True
    """
    if model_type not in ARCHITECTURES:
        raise UserError(
            f"The model's config.model_type is {model_type!r}, which is not supported. "
            f"Known types: {', '.join(sorted(ARCHITECTURES))}. "
            "A new family is one line in `sphere_pl.model.families.ARCHITECTURES`."
        )
    return ARCHITECTURES[model_type]


class EditSite(NamedTuple):
    """One matrix that editing changes.

    Attributes:
        layer: Number of the block.
        name: Hugging Face name of the parameter.
        module: The module whose input is the key `k` and whose weight maps it to the value, `v = W k`.
        fan_in_fan_out: True if the module stores the transpose of `W`.
    """

    layer: int
    name: str
    module: nn.Module
    fan_in_fan_out: bool

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


def edit_sites(model: nn.Module, model_type: str, layers: list[int], n_layers: int) -> list[EditSite]:
    """Find the matrices to edit, shallow to deep.

    Args:
        model: A Hugging Face causal language model.
        model_type: Its `config.model_type`.
        layers: Numbers of the blocks to edit.
        n_layers: How many blocks the model has.

    Raises:
        UserError: If a layer lies outside the model, or the layers do not ascend: the residual is shared over the
            layers that are left, which only makes sense from shallow to deep.
    """
    architecture = architecture_of(model_type)
    check_layers(layers, n_layers)
    path = f"{architecture.block}.{architecture.projection}"
    return [
        EditSite(
            layer,
            f"{path.format(layer)}.weight",
            model.get_submodule(path.format(layer)),
            architecture.fan_in_fan_out,
        )
        for layer in layers
    ]


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
