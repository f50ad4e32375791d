"""The matrices that editing changes in a model at hand, and what lies between them and the stream.

Where they are in each family says the table of `sphere_pl.model.architectures`.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sphere_pl.errors import UserError
from sphere_pl.model.architectures import Architecture, has_module
from sphere_pl.model.output_path import DIRECT, OutputPath


def read_factor(spec: str, *places: object) -> float:
    """Read a factor of an architecture from the first of `places` that has it; 1 if the family has none.

    Raises:
        UserError: If it is in none of them, or is no number.

    Example:
        >>> from types import SimpleNamespace
        >>> config = SimpleNamespace(logits_scaling=8, mlp_multipliers=[1.0, 0.5])
        >>> read_factor("1/logits_scaling", config), read_factor("mlp_multipliers.1", config), read_factor("", config)
        (0.125, 0.5, 1.0)
        >>> read_factor("0.25", config)
        0.25
    """
    if not spec:
        return 1.0
    with suppress(ValueError):
        return float(spec)
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
        """The model's own tensor in its dtype and layout: `[d_out, d_in]`, or its transpose if `fan_in_fan_out`."""
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
    _check_norm(architecture, blocks)
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


def _check_norm(architecture: Architecture, blocks: Sequence[nn.Module]) -> None:
    """Refuse an output norm that is in no block."""
    name = architecture.output_norm
    if name and not any(has_module(block, name) for block in blocks):
        raise UserError(
            f"The model's architecture names the output norm {name!r}, which is no module of its "
            f"blocks. They hold {', '.join(name for name, _ in blocks[0].named_children())}. Correct `output_norm` of "
            "--model.architecture."
        )


def output_path(architecture: Architecture, config: object, block: nn.Module) -> OutputPath:
    """What lies between the edited matrix of a block and the residual stream; no norm where the block has none.

    Raises:
        UserError: If the factor is no number.
    """
    normed = architecture.output_norm and has_module(block, architecture.output_norm)
    norm = block.get_submodule(architecture.output_norm) if normed else None
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
                f"{others}{_instead(architecture, blocks[layer])}"
            )
        lacks = f"no module {architecture.projection!r}, the matrix to edit"
        if not architecture.projection:
            lacks = "no linear map outside of what mixes tokens whose output the residual stream gains"
        raise UserError(f"Layer {layer} has {lacks}. {others}{_instead(architecture, blocks[layer])}")


def _instead(architecture: Architecture, block: nn.Module) -> str:
    """Advice to edit the matrix that a module which mixes tokens ends with."""
    for mixer in architecture.mixers_in(block):
        inner = block.get_submodule(mixer).named_modules()
        matrices = [name for name, module in inner if name and getattr(getattr(module, "weight", None), "ndim", 0) == 2]
        if matrices:
            own = f'\'{{"projection": "{mixer}.{matrices[-1]}"}}\''
            return f" --model.architecture={own} edits what {mixer} puts out instead."
    return " --model.architecture names another."


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
