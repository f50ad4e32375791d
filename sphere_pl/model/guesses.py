"""Likeliest continuations of texts for which somebody guesses them, as the same model with other edits does.

One pass over text and guess shows how far the model would have written the same: it decodes from there on alone.
"""

from collections.abc import Sequence

import torch

from sphere_pl.model.batching import LOGITS_AT_ONCE, pad
from sphere_pl.model.generation import decode, likeliest
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.tokens import encode


def continue_guessed(
    lm: LanguageModel, texts: Sequence[str], guesses: Sequence[str], new_tokens: int
) -> list[list[int]]:
    """Let the model add `new_tokens` tokens to each text, all at once, the likeliest each time.

    Args:
        lm: The language model.
        texts: The texts.
        guesses: How each might continue; a wrong guess costs time and changes nothing, but for rounding, by which
            two tokens that are about as likely can change places in bfloat16.
        new_tokens: How many tokens to add to each.
    """
    read = lm.read(texts)
    rows = [entry.ids for entry in encode(lm.tokenizer, read)]
    tokens = [entry.ids for entry in encode(lm.tokenizer, [a + b for a, b in zip(read, guesses, strict=True)])]
    # A tokenizer may join the end of a text and the beginning of its guess: that is no guess then.
    guessed = [
        each[len(row) :][:new_tokens] if each[: len(row)] == row else [] for row, each in zip(rows, tokens, strict=True)
    ]
    written = [each[:new_tokens] for each in confirmed(lm, rows, guessed)]
    open_ends = [place for place, each in enumerate(written) if len(each) < new_tokens]
    if open_ends:
        missing = new_tokens - min(len(written[place]) for place in open_ends)
        found = decode(lm, [rows[place] + written[place] for place in open_ends], missing, likeliest)
        for place, more in zip(open_ends, found, strict=True):
            written[place] = (written[place] + more)[:new_tokens]
    return written


@torch.no_grad()
def confirmed(lm: LanguageModel, rows: Sequence[Sequence[int]], guesses: Sequence[Sequence[int]]) -> list[list[int]]:
    """How far the likeliest tokens are the guessed ones, and the first that is another; nothing without a guess.

    Args:
        lm: The language model.
        rows: Tokens of any number, at least one.
        guesses: What might follow each.
    """
    chosen = [place for place, guess in enumerate(guesses) if guess]
    found: list[list[int]] = [[] for _ in rows]
    if not chosen:
        return found
    read = [[*rows[place], *guesses[place][:-1]] for place in chosen]
    ids, mask = pad(read, lm.pad_id, lm.device)
    calls = lm.block_calls(ids, mask, torch.arange(ids.shape[1], device=ids.device).expand_as(ids))
    hidden = lm.run(calls.hidden, calls, 0, lm.n_layers)
    for row, place in enumerate(chosen):
        guess, last = guesses[place], len(read[row])
        likely = _likeliest_after(lm, hidden[row, last - len(guess) : last])
        same = next((at for at, pair in enumerate(zip(likely, guess, strict=True)) if pair[0] != pair[1]), len(guess))
        found[place] = likely[: same + 1]
    return found


def _likeliest_after(lm: LanguageModel, states: torch.Tensor) -> list[int]:
    """The likeliest token after each state `[t, d]`; few logits exist at a time."""
    size = max(1, LOGITS_AT_ONCE // lm.config.vocab_size)
    parts = [lm.logits(states[start : start + size]).argmax(-1) for start in range(0, len(states), size)]
    return torch.cat(parts).tolist()
