"""Teacher-forced scores of many records against one prompt at a time with full logits."""

from pathlib import Path

import torch

from benchmarks.language_models import DEFAULT, model_of, titled
from benchmarks.measure import Measurement, alternate, device_name, matmul_rate
from sphere_pl.data.datamodule import EditDataModule
from sphere_pl.data.request import EditRequest
from sphere_pl.evaluation.answers import all_prompts, answer_requests
from sphere_pl.evaluation.scoring import Answer
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.tokens import Prompt, tokenize

COUNTERFACT = Path(__file__).parents[2] / "shared" / "data" / "built" / "counterfact_rebuilt.json"
SAMPLED = 20  # records that are scored the slow way; its time per record does not depend on their number
TOLERANCE = 1e-3


def read_requests(records: int) -> list[EditRequest]:
    """CounterFact's records where they lie beside the checkout, the built-in facts elsewhere."""
    known = COUNTERFACT.exists()
    data = EditDataModule("counterfact" if known else "facts", str(COUNTERFACT) if known else None, limit=records)
    data.setup("fit")
    return data.requests


@torch.no_grad()
def literal_answer(lm: LanguageModel, prompt: Prompt) -> Answer:
    """One prompt alone: no padding, no cache, the logits of every position."""
    (tokens,) = tokenize(lm.tokenizer, [prompt])
    logits = lm.model(input_ids=torch.tensor([tokens.ids], device=lm.device)).logits[0].float()
    at = torch.arange(tokens.target_start - 1, len(tokens.ids) - 1, device=lm.device)
    log_probability = torch.log_softmax(logits, -1)[at, tokens.target].mean()
    return Answer(logits[at].argmax(-1).tolist(), tokens.target, float(log_probability))


def evaluation(records: int = 500, repeats: int = 3, model: str = DEFAULT) -> Measurement:
    """Seconds for all prompts of all records, in bfloat16; the answers are compared in float32 first."""
    requests = read_requests(records)
    sampled = requests[:: max(1, len(requests) // SAMPLED)][:SAMPLED]
    prompts = all_prompts(sampled)
    _check(model_of(model, "float32"), sampled)
    lm = model_of(model, "bfloat16")
    plain, fast = alternate(
        lambda: [literal_answer(lm, prompt) for prompt in prompts], lambda: answer_requests(lm, requests), repeats
    )
    ratio = plain / len(sampled) / (fast / len(requests))
    share = _operations(lm, requests) / fast / matmul_rate(torch.bfloat16)
    name = f"evaluation of {len(requests)} records, {len(all_prompts(requests))} prompts"
    return Measurement(titled(name, model), ratio, 10, share, fast, device_name())


def _check(lm: LanguageModel, requests: list[EditRequest]) -> None:
    """The same tokens and the same probabilities, prompt by prompt."""
    found = [each for answers in answer_requests(lm, requests) for kind in answers for each in kind]
    for each, prompt in zip(found, all_prompts(requests), strict=True):
        expected = literal_answer(lm, prompt)
        assert (each.predicted, each.target) == (expected.predicted, expected.target), prompt
        assert abs(each.log_probability - expected.log_probability) < TOLERANCE, prompt


def _operations(lm: LanguageModel, requests: list[EditRequest]) -> float:
    """Operations that cannot be avoided: every different beginning once, the head once for each that predicts."""
    tokens = tokenize(lm.tokenizer, all_prompts(requests))
    read = {tuple(t.ids[:stop]) for t in tokens for stop in range(1, len(t.ids))}
    predicting = {tuple(t.ids[:stop]) for t in tokens for stop in range(t.target_start, len(t.ids))}
    blocks = lm.n_layers * sum(p.numel() for p in lm.block(0).parameters())
    return float(2 * len(read) * blocks + 2 * len(predicting) * lm.config.hidden_size * lm.config.vocab_size)
