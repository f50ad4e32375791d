"""The protocols beside teacher forcing: answers compared by probability, written freely, or given in chat form."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import NamedTuple

import torch

from sphere_pl.data.builtin import heldout_text
from sphere_pl.data.request import EditRequest, Form
from sphere_pl.evaluation.answers import Answers, EditingMetrics, answer_requests, means_and_errors, prompts
from sphere_pl.evaluation.metrics import AnswerMatch, ProbabilityMagnitude, ProbabilitySuccess, RecordMean
from sphere_pl.evaluation.metrics.table import PROTOCOLS
from sphere_pl.evaluation.scored import Scores
from sphere_pl.evaluation.scoring import answer
from sphere_pl.model.generation import answer_lines, answer_tokens, complete
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.tokens import Prompt, encode
from sphere_pl.text.joining import asked, opens_with_template, separator
from sphere_pl.text.matching import same_answer

_METRICS = {protocol.name: protocol.metrics for protocol in PROTOCOLS}
PREFIX_TOKENS = 50  # of text on something else (EAMET)
ALONE = {"sync_on_compute": False}  # every process scores the whole sample


class Comparison(NamedTuple):
    """One prompt with the answer it should have and the one it should not have."""

    metric: str
    record: int
    text: str
    wanted: str
    other: str
    joiner: str | None = None


class Question(NamedTuple):
    """One prompt with all answers that count as right."""

    metric: str
    record: int
    text: str
    accepted: tuple[str, ...]
    joiner: str | None = None


def probability_scores(lm: LanguageModel, requests: Sequence[EditRequest]) -> Scores:
    """ROME's scores and magnitudes: is the wanted answer likelier than the other one, and by how much.

    Returns:
        `efficacy`, `generalization`, `specificity`, each also with `_magnitude`, and the standard error of each.
    """
    pairs = [pair for record, request in enumerate(requests) for pair in _comparisons(record, request)]
    both = [
        Prompt(asked(pair.text, pair.joiner), text, joiner=pair.joiner)
        for pair in pairs
        for text in (pair.wanted, pair.other)
    ]
    scores = iter([found.log_probability for found in answer(lm, both)])
    rows: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    for pair in pairs:
        rows[pair.metric].append((next(scores), next(scores), pair.record))
    metrics: dict[str, RecordMean] = {}
    for name in _METRICS["probability"]:
        kinds = {name: ProbabilitySuccess(**ALONE), f"{name}_magnitude": ProbabilityMagnitude(**ALONE)}
        for metric in kinds.values() if rows[name] else ():
            wanted, other, record = (torch.tensor(column) for column in zip(*rows[name], strict=True))
            metric.update(wanted, other, record)
        metrics |= kinds
    return means_and_errors(metrics)


def _comparisons(record: int, request: EditRequest) -> Iterator[Comparison]:
    new, true, joiner = request.target_new, (request.target_true or "").strip(), request.joiner
    if true and not same_answer(true, new):  # neither of two equal answers is the likelier one
        yield Comparison("efficacy", record, request.asked, new, true, joiner)
        for text in request.paraphrases:
            yield Comparison("generalization", record, text, new, true, joiner)
    for text, right in zip(request.neighbors, request.neighbor_answers, strict=False):
        if right.strip() and not same_answer(right, new):
            yield Comparison("specificity", record, text, right.strip(), new, joiner)


def generation_scores(lm: LanguageModel, requests: Sequence[EditRequest]) -> Scores:
    """Share of prompts whose freely written answer begins with an accepted one; the model sees none of them.

    Returns:
        `efficacy`, `generalization`, `specificity`, `portability`, and the standard error of each.
    """
    questions = [each for record, request in enumerate(requests) for each in _questions(record, request)]
    texts = _written(lm, questions)
    metrics: dict[str, RecordMean] = {}
    for name in _METRICS["generation"]:
        chosen = [(each, text) for each, text in zip(questions, texts, strict=True) if each.metric == name]
        metrics[name] = metric = AnswerMatch(**ALONE)
        if chosen:
            accepted = [each.accepted for each, _ in chosen]
            metric.update([text for _, text in chosen], accepted, torch.tensor([each.record for each, _ in chosen]))
    return means_and_errors(metrics)


def _written(lm: LanguageModel, questions: Sequence[Question]) -> list[str]:
    """Answers of the model; how much it may write changes where an answer ends, not how it begins."""
    room: dict[int, list[int]] = defaultdict(list)
    for index, each in enumerate(questions):
        room[answer_tokens(lm, each.accepted)].append(index)
    found = [""] * len(questions)
    for new_tokens, indices in room.items():
        some = [questions[index] for index in indices]
        joiners, lines = [each.joiner for each in some], [answer_lines(each.accepted) for each in some]
        texts = complete(lm, [each.text for each in some], new_tokens, joiners=joiners, lines=lines)
        for index, text in zip(indices, texts, strict=True):
            found[index] = text
    return found


def _questions(record: int, request: EditRequest) -> Iterator[Question]:
    new, joiner = (request.target_new, *request.aliases), request.joiner
    yield Question("efficacy", record, request.asked, new, joiner)
    for text in request.paraphrases:
        yield Question("generalization", record, text, new, joiner)
    for text, right in zip(request.neighbors, request.neighbor_answers, strict=False):
        if right.strip():
            yield Question("specificity", record, text, (right,), joiner)
    for text, accepted in zip(request.portability, request.portability_answers, strict=False):
        yield Question("portability", record, text, accepted, joiner)


def chat_scores(lm: LanguageModel, requests: Sequence[EditRequest]) -> Scores:
    """The accuracies of a validation on requests that are asked in their chat form, and their probes with them.

    Returns:
        `efficacy`, `generalization`, `specificity`, and the standard error of each.
    """
    metrics = EditingMetrics().to(lm.device)
    metrics.update(range(len(requests)), answer_requests(lm, requests), {})
    return {name: score for name, score in metrics.summary().items() if name in _METRICS["chat"]}


def long_prefix_scores(lm: LanguageModel, requests: Sequence[EditRequest]) -> Scores:
    """The accuracies of edits and paraphrases after text on something else (arXiv 2505.11876 asks so).

    Which text is not settled there: here it is held-out prose, another piece for each request. A question that opens
    with a chat template of its own, in front of which nothing belongs, is left out.

    Returns:
        `efficacy`, `generalization`, and the standard error of each.
    """
    asked_plain = [request for request in requests if not opens_with_template(request.question)]
    prefixes = long_prefixes(lm, len(asked_plain))
    groups = [prompts(each._replace(form=Form()))[:2] for each in asked_plain]
    prefixed = [
        each._replace(text=prefix + each.text, joiner=_joiner(each))
        for prefix, group in zip(prefixes, groups, strict=True)
        for each in chain(*group)
    ]
    said = iter(answer(lm, prefixed))
    answers = [
        Answers(
            rewrite=[next(said) for _ in own], paraphrases=[next(said) for _ in others], neighbors=[], portability=[]
        )
        for own, others in groups
    ]
    metrics = EditingMetrics().to(lm.device)
    metrics.update(range(len(answers)), answers, {})
    return {name: score for name, score in metrics.summary().items() if name in _METRICS["long_prefix"]}


def _joiner(prompt: Prompt) -> str:
    """What stands before the target: the question says it, whatever text stands before that."""
    return separator(prompt.text, prompt.target) if prompt.joiner is None else prompt.joiner


def long_prefixes(lm: LanguageModel, count: int) -> list[str]:
    """Pieces of `PREFIX_TOKENS` tokens of held-out prose, one after the other and again from the start."""
    tokens = encode(lm.tokenizer, [heldout_text()])[0]
    begin = next(place for place, (_, end) in enumerate(tokens.offsets) if end)
    text, spans = heldout_text(), tokens.offsets[begin:]
    starts = range(0, max(1, len(spans) - PREFIX_TOKENS), PREFIX_TOKENS)
    pieces = [text[spans[at][0] : spans[min(at + PREFIX_TOKENS, len(spans)) - 1][1]] for at in starts]
    return [f"{' '.join(pieces[place % len(pieces)].split())} " for place in range(count)]


# What measures each protocol beside teacher forcing, which every validation measures.
SAMPLED: Mapping[str, Callable[[LanguageModel, Sequence[EditRequest]], Scores]] = MappingProxyType(
    {
        "probability": probability_scores,
        "generation": generation_scores,
        "chat": chat_scores,
        "long_prefix": long_prefix_scores,
    }
)
