"""The models that costs are measured on: the default one, or random weights in the shapes of large ones."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sphere_pl.data.builtin import heldout_text
from sphere_pl.model.generation import sample_contexts
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.loading import Dtype, load_language_model
from sphere_pl.model.products import widen_products
from sphere_pl.process.devices import default_device

DEFAULT = "default"
SHAPES: dict[str, dict[str, Any]] = {
    "llama3-8b": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "qwen2.5-7b": {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
    },
}  # fmt: skip
BLOCKS = 10  # of a large model in float32, where results are checked: enough for the layers that are edited
WORDS = 8  # of a context, for a model that cannot write


def fitting_model() -> str:
    """The default model on a CPU, LLaMA3-8B's shapes on an accelerator."""
    return DEFAULT if default_device().type == "cpu" else "llama3-8b"


def model_of(name: str, dtype: Dtype) -> LanguageModel:
    """The default model, or one with random weights and the default one's tokenizer, on the device.

    Args:
        name: `DEFAULT` or a key of `SHAPES`.
        dtype: Type of the weights; in float32 a large model has its first `BLOCKS` blocks only.
    """
    default = load_language_model(dtype=dtype)
    if name == DEFAULT:
        return default.to(default_device())
    sizes = dict(SHAPES[name])
    if dtype == "float32":
        sizes["num_hidden_layers"] = min(BLOCKS, sizes["num_hidden_layers"])
    config = AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    torch.manual_seed(0)
    with default_device():
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    widen_products(model)
    return LanguageModel(model, default.tokenizer)


def contexts_of(name: str, lm: LanguageModel, count: int) -> list[str]:
    """The empty context and `count` short ones: the default model's own, pieces of text for one that cannot write."""
    if name == DEFAULT:
        return sample_contexts(lm, count=count, length=10, seed=0)
    words = heldout_text().split()
    return ["", *(" ".join(words[WORDS * i : WORDS * (i + 1)]).rstrip(".") + ". " for i in range(count))]


def titled(cost: str, name: str) -> str:
    """A cost's name, with the model's where it is not the default one."""
    return cost if name == DEFAULT else f"{cost}, {name} shapes"
