"""A tiny Llama as a GGUF file, as llama.cpp's converter writes it."""

import json
from pathlib import Path
from typing import Any

import gguf
import torch


def write_gguf(lm: Any, path: Path, *, architecture: str = "llama", tokenizer: bool = True) -> Path:
    """Write the model's float32 weights and its tokenizer.

    Args:
        lm: A `LanguageModel` of a Llama.
        path: The file to write.
        architecture: What the file says it is.
        tokenizer: Whether the tokenizer goes into it.
    """
    config = lm.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if tokenizer:
        _add_tokenizer(writer, lm.tokenizer)
    for name, tensor in _tensors(lm):
        writer.add_tensor(name, tensor.detach().float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any) -> None:
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.CONTROL if word in special else gguf.TokenType.NORMAL for word in words])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)


def _tensors(lm: Any) -> list[tuple[str, torch.Tensor]]:
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "model.layers": "blk",
    }  # fmt: skip
    heads = {"attn_q": lm.config.num_attention_heads, "attn_k": lm.config.num_key_value_heads}
    found = []
    for hugging_face, stored in lm.model.named_parameters():
        name = hugging_face
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        tensor, kind = stored, name.split(".")[-2]
        if kind in heads:  # llama.cpp turns pairs of neighbours where transformers turns halves
            tensor = stored.view(heads[kind], 2, -1, stored.shape[1]).transpose(1, 2).reshape(stored.shape)
        found.append((name, tensor))
    return found
