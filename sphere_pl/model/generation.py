"""What the model writes: one decoding loop, and the texts that are asked of it.

Answers are greedy and end where the model ends them; context templates, text for second moments and free texts are
sampled and of a fixed length.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from sphere_pl.model.batching import micro_batches
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.tokens import CONTEXT_OPENERS, encode, truncate_left
from sphere_pl.progress import Track, untracked
from sphere_pl.text.joining import asked

TEXT_TOKENS = 100  # of a free text, its prompt included (ROME)
TEXTS_TOGETHER = 32
_STOP_WINDOW = 12  # tokens that are searched for a stop text; no stop text is longer

Pick = Callable[[Tensor], Tensor]


def likeliest(logits: Tensor) -> Tensor:
    """Choose the likeliest token of each row.

    Example:
        >>> likeliest(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
        tensor([1, 0])
    """
    return logits.argmax(-1)


def sampler(generator: torch.Generator, top_k: int = 0) -> Pick:
    """Choose tokens at random by their probability, among the `top_k` likeliest if it is above 0."""

    def pick(logits: Tensor) -> Tensor:
        if top_k:
            best = logits.topk(top_k, dim=-1)
            chosen = torch.multinomial(best.values.softmax(-1), 1, generator=generator)
            return best.indices.gather(1, chosen).squeeze(1)
        return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)

    return pick


def _never(tokens: list[int]) -> bool:
    return False


@torch.no_grad()
def decode(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    new_tokens: int,
    pick: Pick,
    ended: Callable[[list[int]], bool] = _never,
) -> list[list[int]]:
    """Let the model continue rows of tokens, all at once, with a key-value cache.

    Unlike `model.generate`, the head sees one row a text: on a strided slice of three dimensions PyTorch would copy the
    head's weight once for every text.

    Args:
        lm: The language model.
        rows: Tokens of any number.
        new_tokens: How many tokens to add to each, fewer where the model reads no more.
        pick: From logits `[rows, vocabulary]` to tokens `[rows]`.
        ended: From a row's new tokens to whether it is complete; such a row leaves the batch.

    Returns:
        The new tokens of each row.
    """
    ids, mask = _pad_left(lm, rows)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    cache, active = lm.new_cache() if lm.cached else None, list(range(len(rows)))
    written: list[list[int]] = [[] for _ in rows]
    together = lm.recurrent and lm.cached  # no rows can be taken out of a recurrent layer's state

    def done(row: int) -> bool:
        return ended(written[row]) or len(rows[row]) + len(written[row]) >= lm.context

    for _ in range(new_tokens):
        calls = lm.block_calls(ids, mask, positions, cache)
        hidden = lm.run(calls.hidden, calls, 0, lm.n_layers)
        tokens = pick(lm.logits(hidden[:, -1].contiguous()))
        for row, token in zip(active, tokens.tolist(), strict=True):
            if not (together and written[row] and done(row)):
                written[row].append(token)
        going = [place for place, row in enumerate(active) if not done(row)]
        if not going:
            break
        if len(going) < len(active) and not together:
            keep = torch.tensor(going)  # on the CPU it serves every layer's cache, wherever that is
            active = [active[place] for place in going]
            tokens, ids, mask, positions = tokens[keep], ids[keep], mask[keep], positions[keep]
            if cache is not None:
                cache.batch_select_indices(keep)
        ids, positions = _next_columns(lm, ids, tokens, positions)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return written


def _next_columns(lm: LanguageModel, ids: Tensor, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """What goes through the model next: the new tokens, or all of them where nothing is cached."""
    following = positions[:, -1:] + 1
    if lm.cached:
        return tokens[:, None], following
    return torch.cat([ids, tokens[:, None].to(ids)], dim=1), torch.cat([positions, following], dim=1)


def _pad_left(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Tokens and mask, padded on the left: the last column is every row's last token."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[lm.pad_id] * (width - len(row)) + list(row) for row in rows], device=lm.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=lm.device)
    return ids, mask


def _encode(lm: LanguageModel, texts: Sequence[str]) -> list[list[int]]:
    return [entry.ids for entry in encode(lm.tokenizer, texts)]


def continue_texts(lm: LanguageModel, texts: Sequence[str], new_tokens: int, pick: Pick) -> list[list[int]]:
    """Let the model add `new_tokens` tokens to each text, all at once, end tokens or not; see `decode`."""
    return decode(lm, _encode(lm, lm.read(texts)), new_tokens, pick)


def generate(
    lm: LanguageModel,
    prompts: Sequence[str],
    new_tokens: int,
    stop: Sequence[str] = (),
    max_tokens: int = 8192,
    track: Track = untracked,
    name: str = "",
) -> list[str]:
    """Continue each prompt by its likeliest tokens; one that is too long for the context loses its beginning.

    What is left of it and the answer fill the context; half of that is the prompt's, however many tokens are asked for.

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
    longest = max(lm.context - new_tokens, (lm.context + 1) // 2)
    rows = [truncate_left(ids, longest, lm.tokenizer.bos_token_id) for ids in _encode(lm, lm.read(prompts))]
    lengths = [min(len(row) + new_tokens, lm.context) for row in rows]
    batches = micro_batches(lengths, max_tokens, overhead=48 * new_tokens)
    ended = partial(_ended, lm, end_tokens(lm), stop)
    answers = [""] * len(rows)
    for places in track(batches, name, len(batches)):
        written = decode(lm, [rows[place] for place in places], new_tokens, likeliest, ended)
        for place, tokens in zip(places, written, strict=True):
            answers[place] = text_until_end(lm, tokens, stop)
    return answers


def end_tokens(lm: LanguageModel) -> set[int]:
    """The tokens that end a text: the tokenizer's, and those of the checkpoint's generation settings."""
    named = getattr(lm.model.generation_config, "eos_token_id", None)
    several = named if isinstance(named, list) else [named]
    return {int(token) for token in [*several, lm.tokenizer.eos_token_id] if token is not None}


def _ended(lm: LanguageModel, ends: set[int], stop: Sequence[str], tokens: list[int]) -> bool:
    if tokens[-1] in ends:
        return True
    recent = lm.tokenizer.decode(tokens[-_STOP_WINDOW:], skip_special_tokens=True) if stop else ""
    return any(text in recent for text in stop)


def text_until_end(lm: LanguageModel, tokens: Sequence[int], stop: Sequence[str] = ()) -> str:
    """The text of some new tokens up to the first that ends it, or to a stop text."""
    ends = end_tokens(lm)
    last = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    text = str(lm.tokenizer.decode(tokens[:last], skip_special_tokens=True))
    return text[: min((text.find(end) for end in stop if end in text), default=len(text))]


def complete(
    lm: LanguageModel,
    texts: Sequence[str],
    new_tokens: int,
    max_tokens: int = 4096,
    joiners: Sequence[str | None] = (),
    lines: Sequence[int] = (),
) -> list[str]:
    """Let the model answer prompts freely: the likeliest token each time, up to the end of the text or a newline.

    Args:
        lm: The language model.
        texts: The prompts; one that occurs several times is answered once.
        new_tokens: How many tokens to write at most.
        max_tokens: Tokens in one forward pass.
        joiners: What stands between each prompt and its answer, where its record says so; none does if left out.
        lines: How many lines each answer has; one if left out.
    """
    put = [asked(text, joiner) for text, joiner in zip(texts, joiners or [None] * len(texts), strict=True)]
    distinct = list(dict.fromkeys(put))
    written = generate(lm, distinct, new_tokens, max_tokens=max_tokens)
    # A newline in front of the answer does not end it.
    answers = {prompt: text.strip().split("\n") for prompt, text in zip(distinct, written, strict=True)}
    kept = zip(put, lines or [1] * len(put), strict=True)
    return ["\n".join(answers[text][:count]).rstrip() for text, count in kept]


def answer_tokens(lm: LanguageModel, answers: Sequence[str], least: int = 0) -> int:
    """Tokens of the longest answer and a few more: an article, a quotation mark, another spelling; at least `least`."""
    if not answers:
        return least
    rows = lm.tokenizer([f" {answer}" for answer in answers], add_special_tokens=False)["input_ids"]
    return max(least, 4 * ((max(map(len, rows)) + 6) // 4))


def answer_lines(answers: Sequence[str]) -> int:
    r"""Lines of the answer that has most.

    Example:
        >>> answer_lines(["Bergen", "Bergen,\nOslo\n"])
        2
    """
    return max((answer.strip().count("\n") + 1 for answer in answers), default=1)


def free_texts(lm: LanguageModel, prompts: Sequence[str], seed: int, length: int = TEXT_TOKENS) -> list[str]:
    """Let the model write on, each token among the five likeliest (ROME).

    Args:
        lm: The language model.
        prompts: Beginnings.
        seed: Seed of the sampling.
        length: Tokens of each text, the beginning included; one that is as long is not continued.

    Returns:
        The texts, each with its beginning.
    """
    generator = torch.Generator(lm.output_device).manual_seed(seed)
    encoded = _encode(lm, lm.read(prompts))
    room = min(length, lm.context)
    order = sorted((index for index, row in enumerate(encoded) if len(row) < room), key=lambda i: len(encoded[i]))
    texts = list(prompts)
    for start in range(0, len(order), TEXTS_TOGETHER):
        places = order[start : start + TEXTS_TOGETHER]
        longest = length - len(encoded[places[0]])
        written = decode(lm, [encoded[place] for place in places], longest, sampler(generator, top_k=5))
        for place, tokens in zip(places, written, strict=True):
            kept = tokens[: length - len(encoded[place])]
            texts[place] += lm.tokenizer.decode(kept, skip_special_tokens=True)
    return texts


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

    MEMIT computes keys and targets after several beginnings so that they hold wherever the fact is asked for
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
