"""Tiny models of families that are in no table, as a user describes them."""

from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sphere_pl.model.language_model import LanguageModel
from tests.conftest import make_tokenizer

# Diff Llama and Doge attend in another way in older releases; the blocks of Doge see later tokens, and it is refused.
ATTENDING_OTHERWISE = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.24"), reason="another attention"
)
_DECODER: dict[str, Any] = {"block": "model.layers.{}", "projection": "mlp.down_proj", "final_norm": "model.norm"}
OTHERS: dict[str, dict[str, Any]] = {
    "opt": {"block": "model.decoder.layers.{}", "projection": "fc2", "final_norm": "model.decoder.final_layer_norm"},
    "mbart": {
        **{"block": "model.decoder.layers.{}", "projection": "fc2", "final_norm": "model.decoder.layer_norm"},
        "mixers": ["encoder_attn"],
    },
    "rwkv": {
        **{"block": "rwkv.blocks.{}", "projection": "feed_forward.value", "final_norm": "rwkv.ln_out"},
        "attention": "attention",
    },
    "gpt_neo": {
        **{"block": "transformer.h.{}", "projection": "mlp.c_proj", "final_norm": "transformer.ln_f"},
        "attention": "attn",
    },
    "diffllama": _DECODER,
    "doge": _DECODER,
    "llama4_text": {
        **{"block": "model.layers.{}", "projection": "feed_forward.down_proj", "final_norm": "model.norm"},
        "shared_expert": "feed_forward.shared_expert.down_proj",
    },
}
_SIZES: dict[str, dict[str, Any]] = {
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "mbart": {
        "d_model": 32,
        "encoder_layers": 4,
        "decoder_layers": 4,
        "decoder_ffn_dim": 48,
        "decoder_attention_heads": 4,
    },
    "rwkv": {"context_length": 128, "attention_hidden_size": 32},
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]], "num_heads": 4, "window_size": 8},
    "llama4_text": {"num_local_experts": 4, "intermediate_size_mlp": 48, "num_key_value_heads": 2, "head_dim": 8},
}


def other_model(model_type: str, **sizes: Any) -> PreTrainedModel:
    """A tiny random model of a family of `OTHERS`."""
    usual = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    usual |= {"vocab_size": len(make_tokenizer()), "max_position_embeddings": 128, "num_key_value_heads": 4}
    if model_type in {"mbart", "gpt_neo"}:  # whose own names, below, say the same
        usual = {name: usual[name] for name in ("vocab_size", "max_position_embeddings", "hidden_size")}
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, **{**usual, **special, **_SIZES.get(model_type, {}), **sizes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for name, parameter in model.named_parameters():  # as initialised, every block is nearly the identity
            if parameter.ndim > 1:
                parameter.data.normal_(std=0.3 if "embed" in name else parameter.shape[-1] ** -0.5)
    return model


def other_lm(model_type: str, **sizes: Any) -> LanguageModel:
    """The same, taken apart."""
    return LanguageModel(other_model(model_type, **sizes), make_tokenizer(), OTHERS[model_type])


def flatten_tokens(lm: LanguageModel) -> LanguageModel:
    """Let the blocks of a Llama hand rows and columns to their MLPs as one dimension, as OPT and many experts do."""

    def flat(mlp: torch.nn.Module) -> Any:
        own = mlp.forward
        return lambda hidden: own(hidden.flatten(0, -2)).view_as(hidden)

    for layer in range(lm.n_layers):
        mlp: Any = lm.block(layer).mlp
        mlp.forward = flat(mlp)
    return lm
