"""Text that the model itself writes: context templates and, without a corpus, text for second moments."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from sphere_pl.language_model import LanguageModel
from sphere_pl.prompts import CONTEXT_OPENERS

Pick = Callable[[Tensor], Tensor]


def sampler(generator: torch.Generator, top_k: int = 0) -> Pick:
    """Choose tokens at random by their probability, among the `top_k` likeliest if it is above 0."""

    def pick(logits: Tensor) -> Tensor:
        if top_k:
            best = logits.topk(top_k, dim=-1)
            chosen = torch.multinomial(best.values.softmax(-1), 1, generator=generator)
            return best.indices.gather(1, chosen).squeeze(1)
        return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)

    return pick


@torch.no_grad()
def continue_texts(lm: LanguageModel, texts: Sequence[str], new_tokens: int, pick: Pick) -> list[list[int]]:
    """Let the model continue texts of any length, all at once.

    Unlike `model.generate`, the head sees one row a text: on a strided slice of three dimensions PyTorch would copy the
    head's weight once for every text.

    Args:
        lm: The language model.
        texts: What to continue.
        new_tokens: How many tokens to add to each.
        pick: From logits `[rows, vocabulary]` to tokens `[rows]`.

    Returns:
        The new tokens of each text.
    """
    encoded = lm.tokenizer(list(texts), return_attention_mask=False)["input_ids"]
    width = max(len(row) for row in encoded)
    # Padded on the left: the last column is every text's last token.
    ids = torch.tensor([[lm.pad_id] * (width - len(row)) + row for row in encoded], device=lm.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in encoded], device=lm.device)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    cache, found = DynamicCache(), []
    for _ in range(new_tokens):
        calls = lm.block_calls(ids, mask, positions, cache)
        hidden = lm.run(calls.hidden, calls, 0, lm.n_layers)
        tokens = pick(lm.logits(hidden[:, -1].contiguous()))
        found.append(tokens)
        ids, positions = tokens[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return torch.stack(found, dim=1).tolist()


def sample_texts(lm: LanguageModel, openers: Sequence[str], new_tokens: int, *, seed: int, top_k: int = 0) -> list[str]:
    """Let the model continue each opener, with a random state of its own.

    Args:
        lm: The language model.
        openers: Beginnings of texts.
        new_tokens: How many tokens to add to each.
        seed: Seed of this call; the global random state is left as it was.
        top_k: Sample among the k likeliest tokens; among all if 0.

    Returns:
        Openers with their continuations, special tokens removed.
    """
    generator = torch.Generator(lm.output_device).manual_seed(seed)
    tokens = continue_texts(lm, openers, new_tokens, sampler(generator, top_k))
    decoded = lm.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [opener + text for opener, text in zip(openers, decoded, strict=True)]


def sample_contexts(lm: LanguageModel, *, count: int, length: int, seed: int) -> list[str]:
    """Sample context templates: the empty one, then `count` short texts that end in ". ".

    MEMIT computes keys and targets behind several beginnings so that they hold wherever the fact is asked for
    (Meng et al. 2023, arXiv 2210.07229, Sec. 4.3.1).

    Args:
        lm: The unedited language model.
        count: How many texts beside the empty one.
        length: Tokens of each text.
        seed: Seed of the sampling.
    """
    if count == 0:
        return [""]
    openers = [CONTEXT_OPENERS[i % len(CONTEXT_OPENERS)] for i in range(count)]
    texts = sample_texts(lm, openers, length - 1, seed=seed, top_k=5)
    # A newline would end the sentence elsewhere than the template means it to.
    return ["", *(" ".join(text.split()) + ". " for text in texts)]
