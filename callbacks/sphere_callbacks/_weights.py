"""Finding the weights that an optimizer changes, and seeing them all as ``[d_out, d_in]``."""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from sphere_callbacks.functional import computes_in_double

log = logging.getLogger(__name__)
# What Fabric, torch.compile, activation checkpointing and FSDP put into the names of what they wrap.
_WRAPPERS = re.compile(r"(?<![^.])(_forward_module|_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")


class EditedWeight(NamedTuple):
    """A matrix that an optimizer changes.

    Attributes:
        name: The name under which it is logged and matched.
        parameter: The parameter as it is stored.
        fan_in_fan_out: Whether it is stored as ``[d_in, d_out]``, as GPT-2's Conv1D does.
    """

    name: str
    parameter: nn.Parameter
    fan_in_fan_out: bool

    @property
    def weight(self) -> Tensor:
        """The values as a view of shape ``[d_out, d_in]``, without history."""
        return self.orient(self.parameter.detach())

    @property
    def grad(self) -> Tensor:
        """The gradient as a view of shape ``[d_out, d_in]``; in an editing optimizer this is minus the update."""
        if self.parameter.grad is None:
            raise ValueError(
                f"`{self.name}` has no gradient. Look at it after the backward pass and before `zero_grad`."
            )
        if self.parameter.grad.layout != torch.strided:
            raise TypeError(
                f"`{self.name}` has a sparse gradient, expected a dense one. Make the embedding with `sparse=False`, "
                "or leave it out with `modules`."
            )
        return self.orient(self.parameter.grad)

    def orient(self, stored: Tensor) -> Tensor:
        """View a tensor in the stored layout as ``[d_out, d_in]``, or the other way round."""
        return stored.T if self.fan_in_fan_out else stored


def matches(name: str, pattern: str | None) -> bool:
    """Tell whether a name fits a shell-style pattern; no pattern fits every name.

    Example:
        >>> matches("layers.4.mlp.down_proj.weight", "*down_proj*")
        True
    """
    return pattern is None or fnmatchcase(name, pattern)


def edited_weights(
    optimizers: Iterable[Optimizer],
    module: nn.Module,
    pattern: str | None = None,
    *,
    with_grad: bool = False,
    any_shape: bool = False,
) -> list[EditedWeight]:
    """List the floating matrices in the param groups of optimizers, each once under each of its names.

    Args:
        optimizers: The optimizers to look through.
        module: Names the parameters of groups that have no ``"name"``, as if nothing were wrapped by Fabric or
            ``torch.compile``.
        pattern: Shell-style pattern that the name must fit.
        with_grad: Only those that have a gradient now.
        any_shape: Biases and whatever else is no matrix as well; they are never transposed.

    Returns:
        The weights in the order of the param groups.

    Raises:
        TypeError: If a pattern fits a matrix whose dtype is not floating.

    Example:
        >>> from torch.optim import SGD
        >>> model = nn.Linear(3, 2)
        >>> [found.name for found in edited_weights([SGD(model.parameters())], model)]
        ['weight']
    """
    names = {id(parameter): _WRAPPERS.sub("", name) for name, parameter in module.named_parameters()}
    found: dict[tuple[int, str], EditedWeight] = {}  # two optimizers may share a weight
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        for parameter in group["params"]:
            name = _name(group, names.get(id(parameter), "weight"))
            if not _wanted(name, parameter, pattern, any_shape) or (with_grad and parameter.grad is None):
                continue
            transposed = bool(group.get("fan_in_fan_out", False)) and parameter.ndim == 2
            found.setdefault((id(parameter), name), EditedWeight(name, parameter, transposed))
    return list(found.values())


def _name(group: dict[str, object], registered: str) -> str:
    return str(group["name"]) if "name" in group and len(group["params"]) == 1 else registered  # type: ignore[arg-type]


def _wanted(name: str, parameter: nn.Parameter, pattern: str | None, any_shape: bool) -> bool:
    if not (any_shape or parameter.ndim == 2) or not matches(name, pattern):
        return False
    if pattern is not None and parameter.ndim == 2 and not parameter.is_floating_point():
        raise TypeError(
            f"`modules={pattern!r}` matches `{name}`, whose dtype {parameter.dtype} is not floating. Dequantise the "
            "weight or narrow the pattern."
        )
    return parameter.is_floating_point()


def require_weights(
    optimizers: Iterable[Optimizer], module: nn.Module, pattern: str | None, owner: str
) -> list[EditedWeight]:
    """List the weights as :func:`edited_weights` does and refuse what a callback cannot work with.

    What a pattern matches besides, and is no matrix although it has more than one dimension, is named in a warning.

    Args:
        optimizers: The optimizers to look through.
        module: Names the parameters.
        pattern: Shell-style pattern that the name must fit.
        owner: Name of the callback, for the message.

    Returns:
        At least one weight, each under a name of its own.

    Raises:
        MisconfigurationException: If no weight matches, two share a name, or a weight is sharded over processes or lies
            on a device without double precision.
    """
    optimizers = list(optimizers)
    found = edited_weights(optimizers, module, pattern)
    blocks = _blocks(optimizers, module, pattern)
    if not found:
        known = [weight.name for weight in edited_weights(optimizers, module)]
        raise MisconfigurationException(
            f"`{owner}(modules={pattern!r})` matches no floating matrix in the optimizers' param groups. "
            f"They hold: {', '.join(known) if known else 'no matrix at all'}."
            + (f" No matrix is {', '.join(blocks)}." if blocks else "")
        )
    if blocks:
        log.warning(
            "`%s(modules=%r)` leaves alone what is no matrix: %s. Split it into one parameter for each matrix, such as "
            "each expert, if it shall be looked at.",
            owner,
            pattern,
            ", ".join(blocks),
        )
    require_names(found, owner)
    _check_places(found, owner)
    return found


def _blocks(optimizers: Iterable[Optimizer], module: nn.Module, pattern: str | None) -> list[str]:
    """Describe what a pattern asks for and has more than two dimensions: experts, convolutions."""
    if pattern is None:
        return []
    matching = edited_weights(optimizers, module, pattern, any_shape=True)
    return [f"{each.name} {list(each.parameter.shape)}" for each in matching if each.parameter.ndim > 2]


def require_names(found: Sequence[EditedWeight], owner: str) -> None:
    """Refuse weights that share a name.

    Args:
        found: What was found in the optimizers.
        owner: Name of the callback, for the message.

    Raises:
        MisconfigurationException: If two share a name.
    """
    names = [weight.name for weight in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MisconfigurationException(
            f"`{owner}` found several weights named {', '.join(twice)}. Give each param group a name of its own."
        )


def _check_places(found: Sequence[EditedWeight], owner: str) -> None:
    sharded = [weight.name for weight in found if isinstance(weight.parameter, DTensor)]
    if sharded:
        raise MisconfigurationException(
            f"`{owner}` needs whole matrices, but {', '.join(sharded)} is sharded over processes. Use a strategy that "
            "keeps parameters whole, such as ddp."
        )
    single = [weight for weight in found if not computes_in_double(weight.parameter.device)]
    if single:
        raise MisconfigurationException(
            f"`{owner}` needs double precision, which {single[0].parameter.device} has not; {single[0].name} lies "
            'there. Train on the CPU: `Trainer(accelerator="cpu")`.'
        )


@contextmanager
def about(name: str) -> Iterator[None]:
    """Add to an error that a function raises on a tensor which weight the tensor was.

    Example:
        >>> try:
        ...     with about("net.0.weight"):
        ...         raise ValueError("`weight` has a NaN.")
        ... except ValueError as error:
        ...     print(*error.__notes__)
        This is about `net.0.weight`.
    """
    try:
        yield
    except ValueError as error:
        error.add_note(f"This is about `{name}`.")
        raise


def stack(measured: Sequence[Tensor]) -> Tensor:
    """Stack what was measured of several weights, each of which may lie on a device of its own.

    Example:
        >>> stack([torch.ones(2), torch.zeros(2)])
        tensor([[1., 1.],
                [0., 0.]])
    """
    return torch.stack([each.to(measured[0].device) for each in measured])
