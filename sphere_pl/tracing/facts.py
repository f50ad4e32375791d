"""The facts that are traced: those whose true answer the model knows, and the spread of their subjects' embeddings."""

from collections.abc import Sequence

import torch

from sphere_pl.data.request import EditRequest
from sphere_pl.errors import UserError
from sphere_pl.evaluation.scoring import answer
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.tokens import Prompt, in_context, tokenize


def true_answer(request: EditRequest) -> Prompt:
    """The question of a fact with the answer that is right today.

    Raises:
        UserError: If the record does not say what is right.
    """
    if request.target_true is None:
        where = request.source or f"case {request.case_id}"
        raise UserError(
            f"{where}: the record does not say what is true today, so there is nothing to trace. Give facts with a "
            "true answer: --data.name=known (prompt, subject, attribute), counterfact, or jsonl with target_true."
        )
    if not request.subject:
        raise UserError(
            f"{request.source or f'case {request.case_id}'}: the record has no subject, whose tokens tracing corrupts. "
            "Add a field `subject`."
        )
    return in_context(request, "", request.target_true.strip())


def known_facts(lm: LanguageModel, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The facts whose whole answer is the likeliest continuation, token by token, in their order."""
    answers = answer(lm, prompts)
    return [prompt for prompt, found in zip(prompts, answers, strict=True) if found.predicted == found.target]


@torch.no_grad()
def embedding_deviation(lm: LanguageModel, prompts: Sequence[Prompt]) -> float:
    """Standard deviation of all entries of the embeddings of all subjects' tokens."""
    ids = [
        token
        for entry in tokenize(lm.tokenizer, prompts)
        for token in entry.ids[entry.subject_first : entry.subject_last + 1]
    ]
    embedded = lm.model.get_input_embeddings()(torch.tensor(ids, device=lm.device))
    return float(embedded.float().std(correction=0))
