"""A model's blocks as `torch.compile` makes them: norms, rotary embeddings and activations fused."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from sphere_pl.forward.attention import packs
from sphere_pl.language_model import BlockCalls, LanguageModel, stream_of


class CompiledBlocks:
    """Run blocks as `LanguageModel.run` does, compiled; as they are where that is not possible, with one warning.

    All blocks of a model share one compiled function, whatever the number of tokens. That needs packed rows: a cache
    is indexed by the block's number, and each number would be compiled anew.

    Args:
        lm: The language model.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self._block = torch.compile(_block, dynamic=True)
        self._compiled = packs(lm)
        if not self._compiled:
            self._warn("blocks are compiled on a CPU, for models with attn_implementation sdpa")

    def run(self, hidden: Tensor, calls: BlockCalls, start: int, stop: int) -> Tensor:
        """Run blocks `start` to `stop - 1` on `hidden` of shape `[1, tokens, d]`."""
        try:
            if self._compiled:
                return self._run(hidden, calls, start, stop)
        except TorchDynamoException as error:
            self._warn(str(error).strip().split("\n")[0])
            self._compiled = False
        return self.lm.run(hidden, calls, start, stop)

    def _run(self, hidden: Tensor, calls: BlockCalls, start: int, stop: int) -> Tensor:
        with warnings.catch_warnings():  # the compiler looks at `.grad` of every input, which PyTorch minds
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor")
            for layer in range(start, stop):
                output = self._block(self.lm.block(layer), hidden, calls.args[layer], calls.kwargs[layer])
                hidden = stream_of(output)
        return hidden

    def _warn(self, reason: str) -> None:
        warnings.warn(
            f"`targets.compile` has no effect: {reason}. The targets are found without it. "
            "On a CPU it needs a C++ compiler (g++, or the one that CXX names).",
            stacklevel=3,
        )


def _block(block: nn.Module, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return block(hidden, *args, **kwargs)
