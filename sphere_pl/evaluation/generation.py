"""What the model writes when nothing but the prompt is given."""

from collections.abc import Sequence

import torch

from sphere_pl.abilities.answering import generate
from sphere_pl.language_model import LanguageModel
from sphere_pl.sampling import continue_texts, sampler

TEXT_TOKENS = 100  # of a free text, its prompt included (ROME)
TEXTS_TOGETHER = 32


def complete(lm: LanguageModel, texts: Sequence[str], new_tokens: int, max_tokens: int = 4096) -> list[str]:
    """Let the model answer prompts freely: the likeliest token each time, up to the end of the text or a newline.

    Args:
        lm: The language model.
        texts: The prompts; one that occurs several times is answered once.
        new_tokens: How many tokens to write at most.
        max_tokens: Tokens in one forward pass.
    """
    distinct = list(dict.fromkeys(text.rstrip() for text in texts))
    written = generate(lm, distinct, new_tokens, max_tokens=max_tokens)
    # A newline in front of the answer does not end it.
    found = {prompt: text.strip().split("\n")[0].rstrip() for prompt, text in zip(distinct, written, strict=True)}
    return [found[text.rstrip()] for text in texts]


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
    generator = torch.Generator(lm.output_device).manual_seed(seed)
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
