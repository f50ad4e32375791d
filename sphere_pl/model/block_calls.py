"""How a model calls its own decoder blocks: the arguments of each, noted without running one."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn


class BlockCalls(NamedTuple):
    """How the model would call its own blocks for one input.

    Attributes:
        hidden: The residual stream that enters block 0, shape `[rows, columns, d]`.
        args: Positional arguments of each block after the hidden state.
        kwargs: Keyword arguments of each block: masks, position embeddings, cache.
        devices: Where each block lives, and so do the tensors among its arguments.
    """

    hidden: Tensor
    args: list[tuple[Any, ...]]
    kwargs: list[dict[str, Any]]
    devices: list[torch.device]

    def replace(self, old: Any, new: Any) -> "BlockCalls":
        """Put `new` wherever the very object `old` is passed (the cache, in practice)."""
        args = [tuple(new if value is old else value for value in call) for call in self.args]
        kwargs = [{key: new if value is old else value for key, value in call.items()} for call in self.kwargs]
        return self._replace(args=args, kwargs=kwargs)

    def placed(self, devices: list[torch.device]) -> "BlockCalls":
        """Put the arguments of each block where it lives; blocks of one device share them."""
        if all(device == self.hidden.device for device in devices):
            return self._replace(devices=devices)
        moved: dict[tuple[int, torch.device], Tensor] = {}
        args = [moved_to(call, device, moved) for call, device in zip(self.args, devices, strict=True)]
        kwargs = [moved_to(call, device, moved) for call, device in zip(self.kwargs, devices, strict=True)]
        return BlockCalls(self.hidden, args, kwargs, devices)


def moved_to(value: Any, device: torch.device, moved: dict[tuple[int, torch.device], Tensor]) -> Any:
    """Move all tensors inside tuples, lists and dictionaries; `moved` holds those that have been, by identity."""
    if isinstance(value, Tensor):
        key = (id(value), device)
        if key not in moved:
            moved[key] = value.to(device)
        return moved[key]
    if type(value) in (tuple, list):
        return type(value)(moved_to(each, device, moved) for each in value)
    if type(value) is dict:
        return {name: moved_to(each, device, moved) for name, each in value.items()}
    return value  # a cache, whose layers lie where their blocks do


def stream_of(output: Any) -> Tensor:
    """The states `[..., d]` in what a block or a module of it returns: they are that, or the first item of a tuple."""
    return cast(Tensor, output[0] if isinstance(output, tuple) else output)


class BlockReachedError(Exception):
    """A block has been called, which is all that was wanted."""


def stop_at_block(hidden: Tensor) -> Tensor:
    """Answer in a block's place by ending the model's pass.

    Raises:
        BlockReachedError: Always.
    """
    raise BlockReachedError


@contextmanager
def recorded_calls(
    blocks: Sequence[nn.Module], calls: BlockCalls, entering: list[Tensor], answer: Callable[[Tensor], Any]
) -> Iterator[None]:
    """Make every block note its arguments and, instead of being run, return `answer` of its input.

    Args:
        blocks: The model's blocks, in the order in which it calls them.
        calls: Takes the arguments of each.
        entering: Takes the hidden state that enters each, `[rows, columns, d]`.
        answer: From that state to what the block returns.
    """

    def recorder(*args: Any, **kwargs: Any) -> Any:
        named = "hidden_states" in kwargs
        hidden = kwargs.pop("hidden_states") if named else args[0]
        entering.append(hidden)
        calls.args.append(args if named else args[1:])
        calls.kwargs.append(kwargs)
        return answer(hidden)

    own = [vars(block).get("forward") for block in blocks]  # accelerate wraps the class's in one of the block's own
    for block in blocks:
        block.forward = recorder
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward
