"""How a model answers items: by the likelihood of each choice, or by greedy generation. Batched and padding-safe.

Likelihoods: a choice is scored by the sum of the log-probabilities of its tokens behind the prompt. Choices of one
token share a row, since they are read off the same place; worked examples that many items begin with are run once.

Generation: the likeliest token at each step, with a key-value cache; rows that have ended leave the batch.

An item that is longer than the model's context loses tokens at its beginning, never its question.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from transformers import DynamicCache

from sphere_pl.abilities.task import Item
from sphere_pl.language_model import FrozenPrefix, LanguageModel, run_prefix
from sphere_pl.progress import Track, untracked
from sphere_pl.prompts import Prompt, micro_batches, pad, tokenize

_LEAST_PREFIX = 16  # tokens; a shorter common beginning is not worth a pass of its own
_STOP_WINDOW = 12  # tokens that are searched for a stop text; no stop text is longer


class Row(NamedTuple):
    """Tokens to run once, and what is read off them.

    Attributes:
        ids: Tokens.
        targets: Item, choice and tokens of each continuation that ends the row; its last token is not in `ids`.
    """

    ids: tuple[int, ...]
    targets: list[tuple[int, int, list[int]]]


@torch.no_grad()
def choice_log_likelihoods(
    lm: LanguageModel, items: Sequence[Item], max_tokens: int = 8192, track: Track = untracked, name: str = ""
) -> list[list[float]]:
    """Log-likelihood of each choice of each item.

    Args:
        lm: The language model.
        items: Items with choices.
        max_tokens: Tokens in one forward pass.
        track: Shows progress.
        name: What it shows.

    Returns:
        For each item the summed log-probability (natural logarithm) of each choice's tokens.
    """
    groups = _rows(lm, items)
    parts = [
        (prefix, [rows[place] for place in places])
        for prefix, rows in groups
        for places in micro_batches([len(row.ids) - len(prefix) for row in rows], max_tokens)
    ]
    found = [[0.0] * len(item.choices) for item in items]
    kept: tuple[int, ...] = ()
    beginning = FrozenPrefix([], [])
    for prefix, rows in track(parts, name, len(parts)):
        if prefix != kept:
            kept, beginning = prefix, run_prefix(lm, *pad([prefix], lm.pad_id, lm.device))
        for item, choice, likelihood in _score(lm, rows, len(prefix), beginning):
            found[item][choice] = likelihood
    return found


def _rows(lm: LanguageModel, items: Sequence[Item]) -> list[tuple[tuple[int, ...], list[Row]]]:
    """Distinct rows of all choices, grouped by the tokens that they begin with."""
    prompts = [Prompt(item.shots + item.prompt, choice) for item in items for choice in item.choices]
    origins = [(place, number) for place, item in enumerate(items) for number in range(len(item.choices))]
    tokens = tokenize(lm.tokenizer, prompts) if prompts else []
    longest = lm.config.max_position_embeddings
    shared: dict[str, dict[tuple[int, ...], Row]] = {}
    for entry, (place, number) in zip(tokens, origins, strict=True):
        cut = len(entry.ids) - 1 > longest
        ids = tuple(_shorten(lm, entry.ids[:-1], longest))
        group = shared.setdefault("" if cut else items[place].shots, {})
        group.setdefault(ids, Row(ids, [])).targets.append((place, number, entry.target))
    groups = [(key, list(rows.values())) for key, rows in shared.items()]
    return [(_common(rows) if key else (), rows) for key, rows in groups]


def _shorten(lm: LanguageModel, ids: list[int], longest: int) -> list[int]:
    """Drop tokens at the beginning, but not the token that marks it."""
    excess = len(ids) - longest
    if excess <= 0:
        return ids
    first = 1 if ids[0] == lm.tokenizer.bos_token_id else 0
    return ids[:first] + ids[first + excess :]


def _common(rows: list[Row]) -> tuple[int, ...]:
    """What all rows begin with, if it is worth running on its own; every row keeps what its targets are read off."""
    first, last = min(row.ids for row in rows), max(row.ids for row in rows)
    most = min(len(row.ids) - max(len(target) for *_, target in row.targets) for row in rows)
    length = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    length = min(length, most)
    return first[:length] if length >= _LEAST_PREFIX and len(rows) > 1 else ()


def _score(lm: LanguageModel, rows: list[Row], behind: int, prefix: FrozenPrefix) -> Iterator[tuple[int, int, float]]:
    """Item, choice and log-likelihood of each target that is read off some rows, `behind` tokens after the prefix."""
    ids, mask = pad([row.ids[behind:] for row in rows], lm.pad_id, lm.device)
    positions = (behind + torch.arange(ids.shape[1], device=ids.device)).expand_as(ids)
    whole = torch.cat([mask.new_ones(len(ids), behind), mask], dim=1)
    calls = prefix.expand(len(ids)).calls(lm, ids, whole, positions)
    hidden = lm.run(calls.hidden, calls, 0, lm.n_layers)
    widths = [max(len(target) for *_, target in row.targets) for row in rows]
    ends = [len(row.ids) - behind for row in rows]
    places = [place for place, width in enumerate(widths) for _ in range(width)]
    columns = [end - width + k for end, width in zip(ends, widths, strict=True) for k in range(width)]
    log_probabilities = torch.log_softmax(lm.logits(hidden[places, columns]), -1).split(widths)
    for row, width, logp in zip(rows, widths, log_probabilities, strict=True):  # logp [width, vocabulary]
        for item, choice, target in row.targets:
            labels = torch.tensor(target, device=logp.device)[:, None]
            yield item, choice, float(logp[width - len(target) :].gather(1, labels).double().sum())


@torch.no_grad()
def generate(
    lm: LanguageModel,
    prompts: Sequence[str],
    new_tokens: int,
    stop: Sequence[str] = (),
    max_tokens: int = 8192,
    track: Track = untracked,
    name: str = "",
) -> list[str]:
    """Continue each prompt by its likeliest tokens.

    Args:
        lm: The language model.
        prompts: Texts of any length.
        new_tokens: Most tokens to add to each.
        stop: Texts that end an answer; they are not part of it.
        max_tokens: Tokens in one batch, prompts and answers together.
        track: Shows progress.
        name: What it shows.

    Returns:
        The answers, without special tokens.
    """
    longest = lm.config.max_position_embeddings - new_tokens
    encoded = lm.tokenizer(list(prompts), return_attention_mask=False, verbose=False)["input_ids"] if prompts else []
    rows = [_shorten(lm, ids, longest) for ids in encoded]
    batches = micro_batches([len(row) + new_tokens for row in rows], max_tokens, overhead=48 * new_tokens)
    answers = [""] * len(rows)
    for places in track(batches, name, len(batches)):
        for place, answer in zip(places, _continue(lm, [rows[p] for p in places], new_tokens, stop), strict=True):
            answers[place] = answer
    return answers


def _continue(lm: LanguageModel, rows: list[list[int]], new_tokens: int, stop: Sequence[str]) -> list[str]:
    """Continue rows of tokens together."""
    width = max(len(row) for row in rows)
    # Padded on the left: the last column is every row's last token.
    ids = torch.tensor([[lm.pad_id] * (width - len(row)) + list(row) for row in rows], device=lm.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=lm.device)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    ends, cache = _end_tokens(lm), DynamicCache()
    found: list[list[int]] = [[] for _ in rows]
    active = list(range(len(rows)))
    for _ in range(new_tokens):
        calls = lm.block_calls(ids, mask, positions, cache)
        hidden = lm.run(calls.hidden, calls, 0, lm.n_layers)
        tokens = lm.logits(hidden[:, -1].contiguous()).argmax(-1)
        for row, token in zip(active, tokens.tolist(), strict=True):
            found[row].append(token)
        going = [place for place, row in enumerate(active) if not _ended(lm, found[row], ends, stop)]
        if not going:
            break
        if len(going) < len(active):
            keep = torch.tensor(going)  # on the CPU it serves every layer's cache, wherever that is
            active = [active[place] for place in going]
            tokens, mask, positions = tokens[keep], mask[keep], positions[keep]
            cache.batch_select_indices(keep)
        ids, positions = tokens[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return [_text(lm, tokens, ends, stop) for tokens in found]


def _end_tokens(lm: LanguageModel) -> set[int]:
    """The tokens that end a text: the tokenizer's, and those of the checkpoint's generation settings."""
    named = getattr(lm.model.generation_config, "eos_token_id", None)
    several = named if isinstance(named, list) else [named]
    return {int(token) for token in [*several, lm.tokenizer.eos_token_id] if token is not None}


def _ended(lm: LanguageModel, tokens: list[int], ends: set[int], stop: Sequence[str]) -> bool:
    if tokens[-1] in ends:
        return True
    recent = lm.tokenizer.decode(tokens[-_STOP_WINDOW:], skip_special_tokens=True) if stop else ""
    return any(text in recent for text in stop)


def _text(lm: LanguageModel, tokens: list[int], ends: set[int], stop: Sequence[str]) -> str:
    """What was said before the first end."""
    last = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    text = str(lm.tokenizer.decode(tokens[:last], skip_special_tokens=True))
    return text[: min((text.find(end) for end in stop if end in text), default=len(text))]
