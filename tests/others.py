"""Tiny models of families that are in no table, as a user describes them."""

from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from sphere_pl.model.architectures import context_length
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.loading import model_in_memory
from tests.conftest import make_tokenizer

# Diff Llama and Doge attend in another way in older releases; the blocks of Doge see later tokens, and it is refused.
ATTENDING_OTHERWISE = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.24"), reason="another attention"
)
_DECODER: dict[str, Any] = {"block": "model.layers.{}", "projection": "mlp.down_proj", "final_norm": "model.norm"}
_SEEING = {"llava"}
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
_MAMBA: dict[str, Any] = {
    **{"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8},
    **{"head_dim": 8},
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
    "bloom": {"n_layer": 4, "n_head": 4, "seq_length": 128},
    "mpt": {"d_model": 32, "n_layers": 4, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 128},
    "gpt_neox_japanese": {"intermediate_multiple_size": 2, "rotary_pct": 1.0},
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "nemotron_h": {
        **{"layers_block_type": ["mamba", "moe", "attention", "mlp"], "head_dim": 8, "num_key_value_heads": 2},
        **{"mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8},
        **{"moe_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16, "n_routed_experts": 4},
        **{"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    },
    "olmo_hybrid": {
        **{"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8},
        **{"linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"] * 2},
    },
    "mamba": {"num_hidden_layers": 4, "state_size": 4, "time_step_rank": 4},
}
# Families in no table, each of a kind of its own: what is found of it is the edited matrix in each layer that has one.
FOUND: dict[str, dict[int, str]] = {
    "bloom": dict.fromkeys(range(4), "mlp.dense_4h_to_h"),  # its attention and its MLP return the stream with their own
    "mpt": dict.fromkeys(range(4), "ffn.down_proj"),  # takes no positions
    "gpt_neox_japanese": dict.fromkeys(range(4), "mlp.dense_4h_to_h"),  # a bias is added beside attention
    "bamba": dict.fromkeys(range(4), "feed_forward.down_proj"),  # blocks return two things
    "nemotron_h": {1: "mixer.shared_experts.down_proj", 3: "mixer.down_proj"},  # one part a block, of one name
    "olmo_hybrid": dict.fromkeys(range(4), "mlp.down_proj"),  # an output norm in some blocks
    "llava": dict.fromkeys(range(4), "mlp.down_proj"),  # a text model inside one that sees
}
FOUND = {name: found for name, found in FOUND.items() if name in CONFIG_MAPPING}


def other_model(model_type: str, **sizes: Any) -> PreTrainedModel:
    """A tiny random model of a family of `OTHERS`."""
    usual = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    usual |= {"vocab_size": len(make_tokenizer()), "max_position_embeddings": 128, "num_key_value_heads": 4}
    if model_type in {"mbart", "gpt_neo", "bloom", "mpt", "mamba"}:  # whose own names, below, say the same
        usual = {name: usual[name] for name in ("vocab_size", "max_position_embeddings", "hidden_size")}
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = _config(model_type, {**usual, **special, **_SIZES.get(model_type, {}), **sizes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        build = AutoModelForImageTextToText if model_type in _SEEING else AutoModelForCausalLM
        model = build.from_config(config).eval()
        for name, parameter in model.named_parameters():  # as initialised, every block is nearly the identity
            if parameter.ndim > 1:
                parameter.data.normal_(std=0.3 if "embed" in name else parameter.shape[-1] ** -0.5)
    return model


def _config(model_type: str, options: dict[str, Any]) -> Any:
    if model_type not in _SEEING:
        return AutoConfig.for_model(model_type, **options)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    vision = {"model_type": "clip_vision_model", **tower, "image_size": 28, "patch_size": 14, "projection_dim": 16}
    return AutoConfig.for_model(
        model_type, text_config={"model_type": "llama", **options}, vision_config=vision, image_token_index=1
    )


def other_lm(model_type: str, **sizes: Any) -> LanguageModel:
    """The same, taken apart."""
    return LanguageModel(other_model(model_type, **sizes), make_tokenizer(), OTHERS[model_type])


def found_lm(model_type: str, own: dict[str, Any] | None = None, **sizes: Any) -> LanguageModel:
    """A tiny model of a family in no table as it is loaded: its parts found and checked."""
    model = other_model(model_type, **sizes)
    if not context_length(lambda name: getattr(model.config.get_text_config(), name, None)):
        model.config.max_position_embeddings = 128
    return model_in_memory("tiny", model, make_tokenizer(), own)[1]


def flatten_tokens(lm: LanguageModel) -> LanguageModel:
    """Let the blocks of a Llama hand rows and columns to their MLPs as one dimension, as OPT and many experts do."""

    def flat(mlp: torch.nn.Module) -> Any:
        own = mlp.forward
        return lambda hidden: own(hidden.flatten(0, -2)).view_as(hidden)

    for layer in range(lm.n_layers):
        mlp: Any = lm.block(layer).mlp
        mlp.forward = flat(mlp)
    return lm
