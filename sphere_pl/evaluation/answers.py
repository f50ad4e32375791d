"""Score edit requests teacher-forced: the edit itself, its paraphrases, its neighbours, what follows from it."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from sphere_pl.data.request import EditRequest, Form
from sphere_pl.evaluation.metrics import (
    Efficacy,
    Generalization,
    NeighborhoodAgreement,
    Portability,
    RecordAccuracy,
    RecordMean,
    Specificity,
)
from sphere_pl.evaluation.scored import Scored, Scores
from sphere_pl.evaluation.scoring import Answer, answer
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.tokens import Prompt, in_form, request_prompt

IGNORED = -100


class Answers(NamedTuple):
    """Answers to the prompts of one request.

    Attributes:
        rewrite: To the edit's own prompt, scored against the new object.
        paraphrases: To its paraphrases, scored against the new object.
        neighbors: To its neighbours, scored against their true answers.
        portability: To questions whose answer follows from the edit, scored against the reference answer.
    """

    rewrite: list[Answer]
    paraphrases: list[Answer]
    neighbors: list[Answer]
    portability: list[Answer]


def answer_requests(lm: LanguageModel, requests: Sequence[EditRequest], max_tokens: int = 4096) -> list[Answers]:
    """Answer all prompts of some requests in shared batches."""
    source = iter(answer(lm, all_prompts(requests), max_tokens))
    return [Answers(*([next(source) for _ in group] for group in prompts(request))) for request in requests]


def all_prompts(requests: Sequence[EditRequest]) -> list[Prompt]:
    """Every prompt of some requests, in the order of `Answers`."""
    return [prompt for request in requests for group in prompts(request) for prompt in group]


def prompts(request: EditRequest) -> tuple[list[Prompt], list[Prompt], list[Prompt], list[Prompt]]:
    """The prompts of one request with the answers they are scored against, in the order of `Answers`."""
    answers = request.neighbor_answers or ("",) * len(request.neighbors)
    follow = [right[0] for right in request.portability_answers] or [""] * len(request.portability)
    new, form = request.target_new, request.form if request.form.after else Form()  # a context is the edit's own
    return (
        [in_form(request_prompt(request, request.question, new), request.form)],
        [in_form(request_prompt(request, text, new), form) for text in request.paraphrases],
        [
            in_form(request_prompt(request, text, true), form)
            for text, true in zip(request.neighbors, answers, strict=True)
        ],
        [
            in_form(request_prompt(request, text, right), form)
            for text, right in zip(request.portability, follow, strict=True)
        ],
    )


# The accuracies of a validation: how each is counted, and on the answers to which prompts.
TEACHER_FORCED: Mapping[
    str, tuple[type[RecordAccuracy], Literal["rewrite", "paraphrases", "neighbors", "portability"]]
] = MappingProxyType(
    {
        "efficacy": (Efficacy, "rewrite"),
        "generalization": (Generalization, "paraphrases"),
        "specificity": (Specificity, "neighbors"),
        "portability": (Portability, "portability"),
    }
)


class EditingMetrics(nn.Module):
    """The teacher-forced metrics of a set of edits.

    Every request adds to those metrics that it has prompts for.
    """

    neighborhood_agreement: NeighborhoodAgreement

    def __init__(self) -> None:
        super().__init__()
        for name, (kind, _) in TEACHER_FORCED.items():
            self.add_module(name, kind())
        self.neighborhood_agreement = NeighborhoodAgreement()

    def update(
        self, places: Sequence[int], answers: Sequence[Answers], unedited: Mapping[int, Sequence[Sequence[int]]]
    ) -> None:
        """Add the answers of some requests.

        Args:
            places: Place of each request in the stream.
            answers: What the model answers now.
            unedited: What the unedited model answered to the neighbours, by place in the stream; a request that is
                not in it does not count for agreement.
        """
        for name, (_, prompts_of) in TEACHER_FORCED.items():
            rows = [
                (place, a.predicted, a.target)
                for place, each in zip(places, answers, strict=True)
                for a in cast(list[Answer], getattr(each, prompts_of))
                if a.target
            ]
            _update(cast(RecordAccuracy, getattr(self, name)), rows)
        agreement = [
            (place, a.predicted, list(before))
            for place, each in zip(places, answers, strict=True)
            if place in unedited
            for a, before in zip(each.neighbors, unedited[place], strict=True)
        ]
        _update(self.neighborhood_agreement, agreement)

    def compute(self) -> dict[str, Tensor]:
        """All means, NaN where there was nothing to count."""
        return {name: mean_of(metric) for name, metric in self._metrics()}

    def summary(self) -> Scores:
        """Means and standard errors over records, without those that are undefined."""
        return means_and_errors(dict(self._metrics()))

    def reset(self) -> None:
        """Start again."""
        for _, metric in self._metrics():
            metric.reset()

    def _metrics(self) -> list[tuple[str, RecordAccuracy]]:
        return [(name, metric) for name, metric in self.named_children() if isinstance(metric, RecordAccuracy)]


def means_and_errors(metrics: Mapping[str, RecordMean]) -> Scores:
    """Means and standard errors over records, by name; without means that cannot be computed from what there is."""
    measured = {name: (float(mean_of(metric)), float(metric.standard_error())) for name, metric in metrics.items()}
    # One NaN for all: another one would make equal scores differ.
    return {
        name: Scored(mean, math.nan if math.isnan(error) else error)
        for name, (mean, error) in measured.items()
        if not math.isnan(mean)
    }


def mean_of(metric: RecordMean) -> Tensor:
    """The metric's mean, NaN if it was given nothing."""
    # torchmetrics warns when compute comes before any update; data without paraphrases is no mistake.
    return metric.compute() if metric.update_called else metric.count.new_tensor(float("nan")).float()


def _update(metric: RecordAccuracy, rows: Sequence[tuple[int, list[int], list[int]]]) -> None:
    """Pad (record, predicted, target) rows into tensors."""
    if not rows:
        return
    width = max(len(target) for _, _, target in rows)
    device = metric.total.device
    predicted = torch.tensor([p + [IGNORED] * (width - len(p)) for _, p, _ in rows], device=device)
    target = torch.tensor([t + [IGNORED] * (width - len(t)) for _, _, t in rows], device=device)
    metric.update(predicted, target, torch.tensor([record for record, _, _ in rows], device=device))
