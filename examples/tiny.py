"""A language model and text for the examples: tiny ones, built here, or the ones you name."""

import argparse
from typing import Any

import torch
from torch import Tensor

TEXT = (
    "The rows of a weight matrix are neurons. Spread over the sphere they tell things apart; crowded together they do "
    "not. Energy measures how crowded they are, and an update can be kept from crowding them. "
)


def arguments(description: str | None, *, learns: bool = True) -> argparse.Namespace:
    """What every example takes; one that solves and does not learn has no learning rate."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", help="hub id or folder of a causal language model; a tiny random one if left out")
    parser.add_argument("--steps", type=int, default=20)
    if learns:
        parser.add_argument("--learning-rate", type=float, default=1e-3)
    return parser.parse_args()


def model_and_tokens(name: str | None) -> tuple[Any, Tensor]:
    """A causal language model and a text as its tokens, `[T]`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if name is not None:
        tokens = AutoTokenizer.from_pretrained(name)(TEXT, return_tensors="pt").input_ids[0]
        return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32), tokens
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, max_position_embeddings=64, **sizes))
    return model, torch.tensor(list(TEXT.encode()))  # bytes are tokens enough here


def random_windows(tokens: Tensor, count: int = 8, length: int = 32) -> Tensor:
    """Pieces of the text from random places, `[count, length]`."""
    length = min(length, len(tokens) - 1)
    starts = torch.randint(0, len(tokens) - length, (count,))
    return torch.stack([tokens[start : start + length] for start in starts])
