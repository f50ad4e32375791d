"""How a model answers items by the likelihood of each choice, batched and padding-safe.

A choice is scored by the sum of the log-probabilities of its tokens after the prompt. Choices of one token share a row,
since they are read off the same place; worked examples that many items begin with are run once.

An item that is longer than the model's context loses tokens at its beginning, never its question.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from sphere_pl.abilities.task import Item
from sphere_pl.model.batching import micro_batches, pad
from sphere_pl.model.frozen_prefix import FrozenPrefix, run_prefix
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.tokens import Prompt, tokenize, truncate_left
from sphere_pl.progress import Track, untracked

_LEAST_PREFIX = 16  # tokens; a shorter common beginning is not worth a pass of its own


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
    prompts = [Prompt(item.shots + item.prompt, choice, joiner=" ") for item in items for choice in item.choices]
    origins = [(place, number) for place, item in enumerate(items) for number in range(len(item.choices))]
    tokens = tokenize(lm.tokenizer, prompts) if prompts else []
    longest = lm.context
    shared: dict[str, dict[tuple[int, ...], Row]] = {}
    for entry, (place, number) in zip(tokens, origins, strict=True):
        cut = len(entry.ids) - 1 > longest
        ids = tuple(truncate_left(entry.ids[:-1], longest, lm.tokenizer.bos_token_id))
        group = shared.setdefault("" if cut else items[place].shots, {})
        group.setdefault(ids, Row(ids, [])).targets.append((place, number, entry.target))
    groups = [(key, list(rows.values())) for key, rows in shared.items()]
    return [(_common(rows) if key and not lm.recurrent else (), rows) for key, rows in groups]


def _common(rows: list[Row]) -> tuple[int, ...]:
    """What all rows begin with, if it is worth running on its own; every row keeps what its targets are read off."""
    first, last = min(row.ids for row in rows), max(row.ids for row in rows)
    most = min(len(row.ids) - max(len(target) for *_, target in row.targets) for row in rows)
    length = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    length = min(length, most)
    return first[:length] if length >= _LEAST_PREFIX and len(rows) > 1 else ()


def _score(lm: LanguageModel, rows: list[Row], offset: int, prefix: FrozenPrefix) -> Iterator[tuple[int, int, float]]:
    """Item, choice and log-likelihood of each target that is read off some rows, `offset` tokens after the prefix."""
    ids, mask = pad([row.ids[offset:] for row in rows], lm.pad_id, lm.device)
    positions = (offset + torch.arange(ids.shape[1], device=ids.device)).expand_as(ids)
    whole = torch.cat([mask.new_ones(len(ids), offset), mask], dim=1)
    calls = prefix.expand(len(ids)).calls(lm, ids, whole, positions)
    hidden = lm.run(calls.hidden, calls, 0, lm.n_layers)
    widths = [max(len(target) for *_, target in row.targets) for row in rows]
    ends = [len(row.ids) - offset for row in rows]
    places = [place for place, width in enumerate(widths) for _ in range(width)]
    columns = [end - width + k for end, width in zip(ends, widths, strict=True) for k in range(width)]
    log_probabilities = torch.log_softmax(lm.logits(hidden[places, columns]), -1).split(widths)
    for row, width, logp in zip(rows, widths, log_probabilities, strict=True):  # logp [width, vocabulary]
        for item, choice, target in row.targets:
            labels = torch.tensor(target, device=logp.device)[:, None]
            yield item, choice, float(logp[width - len(target) :].gather(1, labels).double().sum())
