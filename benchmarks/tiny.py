"""A tiny random model in a folder, for programs that test the machinery and not the editing."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from sphere_pl.data.builtin import heldout_text


def tiny_model(folder: Path) -> Path:
    """Write a random two-block LLaMA model with a small tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(heldout_text().splitlines(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|end|>"
    )
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=256, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(std=parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def tiny_arguments(folder: Path) -> Sequence[str]:
    """Arguments of `sphere_pl fit` that edit the tiny model."""
    return [
        f"--model.name={tiny_model(folder / 'model')}",
        "--model.layers=[0,1]",
        "--model.dtype=float32",
        "--model.method.init_args.null_space_threshold=10.0",
        "--model.statistics.tokens=500",
        f"--model.statistics.cache_dir={folder / 'cache'}",
        "--model.evaluation.perplexity_tokens=64",
    ]
