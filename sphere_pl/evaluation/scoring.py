"""What a model answers to prompts, teacher-forced, and how well it predicts a text."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sphere_pl.errors import UserError
from sphere_pl.model.batching import micro_batches, pad
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.prefix_tree import WIDTH, PrefixTree, batch_trees, prefix_trees
from sphere_pl.model.tokens import Prompt, Tokens, encode, tokenize
from sphere_pl.text.joining import separator

PIECES = 8  # of a text, run together
POSITIONS = 64  # whose distributions are in memory at once
HEAD_ROWS = 128  # predictions made together: fewer would read the head too often, the logits of more fill no cache


class Answer(NamedTuple):
    """The model's answer to one prompt.

    Attributes:
        predicted: Likeliest token at each position of the target (at one position, if the prompt has no target).
        target: The target's tokens.
        log_probability: Mean log-probability of the target's tokens; NaN without a target.
    """

    predicted: list[int]
    target: list[int]
    log_probability: float


@torch.no_grad()
def answer(lm: LanguageModel, prompts: Sequence[Prompt], max_tokens: int = 4096) -> list[Answer]:
    """Answer prompts: shared beginnings computed once, batches of similar length, logits at target positions only.

    Args:
        lm: The language model.
        prompts: Prompts with their targets.
        max_tokens: Tokens in one forward pass.

    Raises:
        UserError: If a prompt with its target is longer than the model's context.
    """
    return answer_as_given(lm, _read(lm, prompts), max_tokens)


def _read(lm: LanguageModel, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts as the model reads them; how a target follows is the question's affair, whatever stands before it."""
    if lm.reading is None:
        return list(prompts)
    texts = lm.read([prompt.text for prompt in prompts])
    joiners = [separator(each.text, each.target) if each.joiner is None else each.joiner for each in prompts]
    return [Prompt(text, each.target, joiner=j) for text, each, j in zip(texts, prompts, joiners, strict=True)]


@torch.no_grad()
def answer_as_given(lm: LanguageModel, prompts: Sequence[Prompt], max_tokens: int = 4096) -> list[Answer]:
    """The same, of prompts that are read as they are; see `LanguageModel.read`.

    Raises:
        UserError: If a prompt with its target is longer than the model's context.
    """
    if not prompts:
        return []
    tokens = tokenize(lm.tokenizer, prompts, lm.context)
    # A target's last token is predicted, never read.
    read = [entry.ids[:-1] if entry.target else entry.ids for entry in tokens]
    share = lm.takes_masks(max(map(len, read)))
    trees = prefix_trees(read, WIDTH if share else 0)
    answers: dict[int, Answer] = {}
    for rows in micro_batches([len(tree.ids) for tree in trees], max_tokens):
        chosen = [trees[row] for row in rows]
        answers |= _answer(lm, chosen, tokens, _states(lm, chosen, share))
    return [answers[index] for index in range(len(prompts))]


def _states(lm: LanguageModel, trees: list[PrefixTree], share: bool) -> Tensor:
    """Output of the last block, shape `[rows, columns, d]`."""
    if not share:
        return last_hidden(lm, *pad([tree.ids for tree in trees], lm.pad_id, lm.device))
    calls = lm.block_calls(*batch_trees(trees, lm.pad_id, lm.dtype, lm.device))
    return lm.run(calls.hidden, calls, 0, lm.n_layers)


def _answer(lm: LanguageModel, trees: list[PrefixTree], tokens: list[Tokens], hidden: Tensor) -> dict[int, Answer]:
    """Answers of all sequences in some rows, by their number; each place is predicted once."""
    places: dict[tuple[int, int], int] = {}
    asked: dict[int, list[int]] = {}
    labels: list[int] = []
    for row, tree in enumerate(trees):
        for number, path in tree.paths.items():
            width = max(1, len(tokens[number].target))
            asked[number] = [places.setdefault((row, place), len(places)) for place in path[-width:]]
            labels += tokens[number].target or [0]
    rows, columns = zip(*places, strict=True)
    owners = [place for asking in asked.values() for place in asking]
    best, chosen = _predict(lm, hidden[list(rows), list(columns)], owners, labels)
    split = iter(chosen)
    found = {}
    for number, asking in asked.items():
        scores, target = [next(split) for _ in asking], tokens[number].target
        mean = sum(scores) / len(scores) if target else math.nan
        found[number] = Answer([best[place] for place in asking], target, mean)
    return found


def _predict(lm: LanguageModel, hidden: Tensor, owners: list[int], labels: list[int]) -> tuple[list[int], list[float]]:
    """Predict from some states, a few at a time.

    Args:
        lm: The language model.
        hidden: States `[n, d]`.
        owners: From which of them each label is predicted, `t`.
        labels: Tokens whose log-probability is wanted, `t`.

    Returns:
        The likeliest token of each state, and the log-probability of each label.
    """
    device = lm.output_device
    owner, label = (torch.tensor(values, device=device) for values in (owners, labels))
    chosen = torch.empty(len(labels), device=device)
    best = []
    for start in range(0, len(hidden), HEAD_ROWS):
        logits = lm.logits(hidden[start : start + HEAD_ROWS])
        most, likeliest = logits.max(-1)
        best.append(likeliest)
        inside = (owner >= start) & (owner < start + HEAD_ROWS)
        at = owner[inside] - start
        wanted = logits[at, label[inside]] - most[at]
        # The logarithm of the sum of exponentials, in place: a second tensor of this size costs more than the sum.
        chosen[inside] = wanted - logits.sub_(most[:, None]).exp_().sum(-1).log()[at]
    return torch.cat(best).tolist(), chosen.tolist()


def last_hidden(lm: LanguageModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Output of the last block, before the final normalisation, shape `[rows, columns, d]`."""
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    calls = lm.block_calls(ids, mask, positions)
    return lm.run(calls.hidden, calls, 0, lm.n_layers)


class HeldOut(NamedTuple):
    """Pieces of a text as a model reads them; every token of a piece but its first is predicted.

    Attributes:
        ids: Tokens, shape `[pieces, length]`.
        mask: 1 for real tokens, the same shape.
    """

    ids: Tensor
    mask: Tensor

    @property
    def labels(self) -> Tensor:
        """The tokens that are predicted, `[t]`, in the order of `predicting_states`."""
        return self.ids[:, 1:][self.mask[:, 1:].bool()]


def held_out(lm: LanguageModel, text: str, tokens: int, length: int) -> HeldOut:
    """Cut the beginning of a text into pieces.

    Args:
        lm: The language model, for its tokenizer.
        text: The text.
        tokens: How many tokens of it.
        length: Tokens of a piece, at most as many as the model's context has.

    Raises:
        UserError: If the text has fewer than two tokens.
    """
    ids = encode(lm.tokenizer, [text])[0].ids[:tokens]
    length = min(length, lm.context)
    if len(ids) < 2:
        raise UserError(
            "The text to measure perplexity on is empty. Give another --model.evaluation.text, or --drift.text for the "
            "alarm after every batch; --model.evaluation.perplexity_tokens=0 and --drift.tokens=0 turn them off."
        )
    pieces = [ids[start : start + length] for start in range(0, len(ids), length)]
    return HeldOut(*pad(pieces, lm.pad_id, lm.device))


@torch.no_grad()
def predicting_states(lm: LanguageModel, text: HeldOut) -> Tensor:
    """Output of the last block where a token is predicted, shape `[positions, d]`."""
    states = []
    for ids, mask in zip(text.ids.split(PIECES), text.mask.split(PIECES), strict=True):
        width = int(mask.sum(1).max())
        hidden = last_hidden(lm, ids[:, :width], mask[:, :width])
        states.append(hidden[:, :-1][mask[:, 1:width].bool().to(hidden.device)])
    return torch.cat(states)


def next_token_distributions(lm: LanguageModel, states: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Log-probabilities `[rows, vocabulary]` of the next token after some states `[positions, d]`, few at a time."""
    for start in range(0, len(states), POSITIONS):
        rows = slice(start, start + POSITIONS)
        yield rows, torch.log_softmax(lm.logits(states[rows]), -1)


def log_likelihood(log_probabilities: Tensor, labels: Tensor) -> float:
    """Sum of the log-probabilities `[rows, vocabulary]` of the tokens that follow, `[rows]`, in float64."""
    return float(log_probabilities.gather(1, labels[:, None].to(log_probabilities.device)).double().sum())


def perplexity_of(likelihood: float, tokens: int) -> float:
    """The exponential of the mean negative log-likelihood, finite wherever that is; NaN if it is not.

    Example:
        >>> round(perplexity_of(-3 * math.log(5), 3), 6), perplexity_of(-math.inf, 3)
        (5.0, nan)
    """
    return math.exp(min(-likelihood / tokens, 700.0)) if math.isfinite(likelihood) else math.nan


@torch.no_grad()
def perplexity(lm: LanguageModel, text: str, max_tokens: int = 4096, length: int = 256) -> float:
    """Perplexity of a text, cut into pieces of `length` tokens.

    Args:
        lm: The language model.
        text: The text.
        max_tokens: How many tokens of the text to read.
        length: Tokens of context; longer texts are cut.

    Raises:
        UserError: If the text has fewer than two tokens.
    """
    pieces = held_out(lm, text, max_tokens, length)
    labels, states = pieces.labels, predicting_states(lm, pieces)
    total = sum(log_likelihood(logp, labels[rows]) for rows, logp in next_token_distributions(lm, states))
    return perplexity_of(total, len(labels))
