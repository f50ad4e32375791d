"""From edit requests to tokens: context templates, subjects and targets found by character offsets.

Each text (context, prompt and target) is tokenised once and as a whole, as the model would read it. Which tokens
belong to the target and which is the subject's last one follows from the characters they cover, so byte-level and
SentencePiece tokenizers, with and without a beginning-of-sequence token, take the same path.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sphere_pl.data.request import EditRequest, Form
from sphere_pl.errors import UserError

MOST_TOKENS = 4096  # in one forward pass, if nothing else is said
LOGITS_AT_ONCE = 3 * 2**21  # numbers, 24 MiB: larger blocks of memory are new to the process each time
CONTEXT_OPENERS = ("The", "Therefore", "Because", "I", "You")


class Prompt(NamedTuple):
    """A text to run: what stands before the target, and the target.

    Attributes:
        text: Everything before the target, without a space at its end.
        target: The text to predict, without the space before it; may be empty.
        subject_end: Number of characters of `text` up to the subject's end; 0 if there is no subject.
        subject_start: Number of characters of `text` before the subject.
        joiner: What stands between text and target; a space if None.
    """

    text: str
    target: str = ""
    subject_end: int = 0
    subject_start: int = 0
    joiner: str | None = None


class Tokens(NamedTuple):
    """A tokenised prompt.

    Attributes:
        ids: Tokens of text and target.
        target_start: Index of the target's first token (`len(ids)` without a target).
        subject_last: Index of the subject's last token (-1 without a subject).
        subject_first: Index of the subject's first token (-1 without a subject).
    """

    ids: list[int]
    target_start: int
    subject_last: int
    subject_first: int = -1

    @property
    def target(self) -> list[int]:
        """The target's tokens."""
        return self.ids[self.target_start :]


def in_context(request: EditRequest, context: str = "", target: str = "") -> Prompt:
    """The request's question after a context text, in its form.

    Example:
        >>> in_context(EditRequest("0", "{} is in", "Rome", "Spain"), "So it is. ").text
        'So it is. Rome is in'
    """
    start, end = len(context) + request.prompt.index("{}"), len(context) + request.subject_end
    return in_form(Prompt(context + request.question, target, end, start), request.form)


def in_form(prompt: Prompt, form: Form) -> Prompt:
    """A prompt with what its form puts around it; the answer follows a template's last character directly.

    Example:
        >>> in_form(Prompt("Is it so?", "Yes", 2), Form("<user>", "<answer>"))
        Prompt(text='<user>Is it so?<answer>', target='Yes', subject_end=8, subject_start=6, joiner='')
    """
    if form == Form():
        return prompt
    moved = len(form.before) if prompt.subject_end else 0
    start, end = prompt.subject_start + moved, prompt.subject_end + moved
    return Prompt(
        form.before + prompt.text + form.after, prompt.target, end, start, "" if form.after else prompt.joiner
    )


def kl_prompt(request: EditRequest) -> Prompt:
    """The prompt on which the model's idea of the subject must stay as it is: "{subject} is a" (MEMIT, ROME)."""
    return Prompt(f"{request.subject} is a", "", len(request.subject))


def tokenize(tokenizer: Any, prompts: Sequence[Prompt], max_length: int | None = None) -> list[Tokens]:
    """Tokenise prompts with their targets.

    Args:
        tokenizer: A fast Hugging Face tokenizer.
        prompts: At least one prompt.
        max_length: The model's context length.

    Raises:
        UserError: If a prompt with its target is longer than the model's context.
    """
    texts = [_joined(prompt) for prompt in prompts]
    encoded = tokenizer(texts, return_offsets_mapping=True, return_attention_mask=False)
    tokens = [
        _locate(ids, offsets, prompt)
        for ids, offsets, prompt in zip(encoded["input_ids"], encoded["offset_mapping"], prompts, strict=True)
    ]
    if max_length is not None:
        for entry, prompt in zip(tokens, prompts, strict=True):
            if len(entry.ids) > max_length:
                raise UserError(
                    f"The prompt {prompt.text[:60]!r}... has {len(entry.ids)} tokens with its target, but the model "
                    f"reads at most {max_length}. Shorten it or leave the record out."
                )
    return tokens


def _joined(prompt: Prompt) -> str:
    """Text and target as the model reads them."""
    joiner = " " if prompt.joiner is None else prompt.joiner
    return prompt.text + joiner + prompt.target if prompt.target else prompt.text


def check_length(tokenizer: Any, request: EditRequest, context: str, max_length: int) -> None:
    """Refuse a request that does not fit into the model's context after its longest context template.

    Raises:
        UserError: Naming the record's source.
    """
    (tokens,) = tokenize(tokenizer, [in_context(request, context, request.target_new)])
    if len(tokens.ids) > max_length:
        form = " in chat form" if request.form.after else ""
        raise UserError(
            f"{request.source or f'case {request.case_id}'}: prompt, target and a context template have{form} "
            f"{len(tokens.ids)} tokens, but the model reads at most {max_length}. Shorten the record or leave it out."
        )


def _locate(ids: list[int], offsets: list[tuple[int, int]], prompt: Prompt) -> Tokens:
    """Find the target and the subject's first and last token by the characters that each token covers."""
    target_start = len(ids)
    subject_first = subject_last = -1
    for index, (start, end) in enumerate(offsets):
        if start == end:  # special tokens cover no characters
            continue
        if end > len(prompt.text):
            target_start = min(target_start, index)
        if start < prompt.subject_end:
            subject_last = index
            # A token that holds the space before the subject and its first letters is the subject's.
            if subject_first < 0 and end > prompt.subject_start:
                subject_first = index
    return Tokens(list(ids), target_start, subject_last, subject_first)


def truncate_left(ids: list[int], longest: int, bos_id: int | None) -> list[int]:
    """Drop tokens at the beginning, but not the token that marks it.

    Example:
        >>> truncate_left([1, 5, 6, 7], 3, bos_id=1)
        [1, 6, 7]
    """
    excess = len(ids) - longest
    if excess <= 0:
        return ids
    first = 1 if ids[0] == bos_id else 0
    return ids[:first] + ids[first + excess :]


def pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad rows on the right.

    Returns:
        Tokens and attention mask (1 for real tokens), both of shape `[rows, longest]`.

    Example:
        >>> pad([[5, 6], [7]], 0, torch.device("cpu"))[1]
        tensor([[1, 1],
                [1, 0]])
    """
    width = max((len(row) for row in rows), default=0)
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids.reshape(len(rows), width).long(), mask.reshape(len(rows), width).long()


def micro_batches(lengths: Sequence[int], max_tokens: int, overhead: int = 16) -> list[list[int]]:
    """Group rows by length so that padding and the number of groups cost as little as possible.

    Args:
        lengths: Tokens of each row.
        max_tokens: No group exceeds this many tokens after padding; a longer row stands alone.
        overhead: What starting another group costs, in tokens of work.

    Returns:
        Indices into `lengths`, each once, rows sorted by length.

    Example:
        >>> micro_batches([3, 90, 3, 4], max_tokens=1000)
        [[0, 2, 3], [1]]
    """
    groups = []
    for rows in _buckets(lengths, overhead):
        size = max(1, max_tokens // max(1, lengths[rows[-1]]))
        groups += [rows[start : start + size] for start in range(0, len(rows), size)]
    return groups


def _buckets(lengths: Sequence[int], overhead: int) -> list[list[int]]:
    """Split the rows, sorted by length, where padding would cost more than another group."""
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(length, []).append(index)
    steps = sorted(by_length)
    # best[i]: cheapest way to group the i shortest lengths, and where its last group begins.
    best: list[tuple[int, int]] = [(0, 0)]
    for stop, longest in enumerate(steps, start=1):
        rows, options = 0, []
        for start in range(stop - 1, -1, -1):
            rows += len(by_length[steps[start]])
            options.append((best[start][0] + rows * longest + overhead, start))
        best.append(min(options))
    groups, stop = [], len(steps)
    while stop:
        start = best[stop][1]
        groups.append([index for length in steps[start:stop] for index in by_length[length]])
        stop = start
    return groups[::-1]
