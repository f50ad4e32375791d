"""What the model writes when nothing but the prompt is given."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sphere_pl.language_model import LanguageModel
from sphere_pl.prompts import micro_batches
from sphere_pl.sampling import continue_texts, sampler

TEXT_TOKENS = 100  # of a free text, its prompt included (ROME)
TEXTS_TOGETHER = 32


def complete(lm: LanguageModel, texts: Sequence[str], new_tokens: int, max_tokens: int = 4096) -> list[str]:
    """Let the model answer prompts freely: the likeliest token each time, up to the end of the text or a newline.

    Args:
        lm: The language model.
        texts: The prompts.
        new_tokens: How many tokens to write at most.
        max_tokens: Tokens in one forward pass.
    """
    distinct = list(dict.fromkeys(text.rstrip() for text in texts))
    lengths = [len(row) for row in lm.tokenizer(distinct)["input_ids"]] if distinct else []
    found: dict[str, str] = {}
    # Each group runs the whole model once for every new token.
    for rows in micro_batches(lengths, max_tokens, overhead=48 * new_tokens):
        room = lm.config.max_position_embeddings - max(lengths[row] for row in rows)
        group = [distinct[row] for row in rows]
        written = continue_texts(lm, group, min(new_tokens, room), _likeliest) if room > 0 else [[] for _ in group]
        found |= zip(group, [_until_stop(lm, tokens) for tokens in written], strict=True)
    return [found[text.rstrip()] for text in texts]


def _likeliest(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def _until_stop(lm: LanguageModel, tokens: list[int]) -> str:
    """The text up to the end-of-text token or the first newline that follows something."""
    ends = {lm.tokenizer.eos_token_id}
    kept = next((tokens[:place] for place, token in enumerate(tokens) if token in ends), tokens)
    text = str(lm.tokenizer.decode(kept, skip_special_tokens=True)).strip()
    return text.split("\n")[0].rstrip()


def answer_tokens(lm: LanguageModel, answers: Sequence[str]) -> int:
    """Tokens of the longest answer and a few more: an article, a quotation mark, another spelling."""
    rows = lm.tokenizer([f" {answer}" for answer in answers], add_special_tokens=False)["input_ids"]
    return 4 * ((max(map(len, rows)) + 6) // 4)


def free_texts(lm: LanguageModel, prompts: Sequence[str], seed: int, length: int = TEXT_TOKENS) -> list[str]:
    """Let the model write on, each token among the five likeliest (ROME).

    Args:
        lm: The language model.
        prompts: Beginnings.
        seed: Seed of the sampling.
        length: Tokens of each text, the beginning included.

    Returns:
        The texts, each with its beginning.
    """
    generator = torch.Generator(lm.device).manual_seed(seed)
    lengths = [len(row) for row in lm.tokenizer(list(prompts))["input_ids"]] if prompts else []
    order = sorted(range(len(prompts)), key=lambda index: lengths[index])
    texts = dict.fromkeys(range(len(prompts)), "")
    for start in range(0, len(order), TEXTS_TOGETHER):
        rows = order[start : start + TEXTS_TOGETHER]
        longest = max(1, length - lengths[rows[0]])
        written = continue_texts(lm, [prompts[row] for row in rows], longest, sampler(generator, top_k=5))
        for row, tokens in zip(rows, written, strict=True):
            kept = tokens[: max(0, length - lengths[row])]
            texts[row] = prompts[row] + lm.tokenizer.decode(kept, skip_special_tokens=True)
    return [texts[row] for row in range(len(prompts))]
