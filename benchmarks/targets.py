"""Target optimisation of a batch against one request at a time with full forwards."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.language_models import DEFAULT, contexts_of, model_of, titled
from benchmarks.measure import Measurement, alternate, device_name, matmul_rate, relative_error
from sphere_pl.data.datamodule import EditDataModule
from sphere_pl.data.request import EditRequest
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editing.targets import optimize_targets
from sphere_pl.model.batching import pad
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.products import fast_products
from sphere_pl.model.tokens import Tokens, in_context, kl_prompt, tokenize

LAYER = 8
# The paper's work for a request: 25 evaluations, no early stop, so that both sides do the same number of steps.
SETTINGS = TargetSettings(steps=25, learning_rate=0.5, clamp=4.0, weight_decay=1e-3, stop_loss=0.0, max_tokens=16384)
TOLERANCE = 1e-4


def literal_target(
    lm: LanguageModel, request: EditRequest, contexts: list[str], settings: TargetSettings, layer: int = LAYER
) -> Tensor:
    """ROME's and MEMIT's optimisation for one request: every step runs all tokens through all blocks."""
    prompts = [in_context(request, context, request.target_new) for context in contexts] + [kl_prompt(request)]
    tokens = tokenize(lm.tokenizer, prompts)
    ids, mask = pad([t.ids[:-1] if t.target else t.ids for t in tokens], lm.pad_id, lm.device)
    rows = torch.arange(len(tokens), device=lm.device)
    subject = torch.tensor([t.subject_last for t in tokens], device=lm.device)
    shift = torch.zeros(lm.config.hidden_size, device=lm.device, requires_grad=True)
    states: list[Tensor] = []

    def add_shift(_: nn.Module, __: object, output: Tensor) -> Tensor:
        if not states:
            states.append(output[0, subject[0]].detach().float())
        changed = output.clone()
        changed[rows, subject] = (changed[rows, subject] + shift).to(output.dtype)
        return changed

    handle = lm.block(layer).register_forward_hook(add_shift)
    try:
        _descend(lm, tokens, ids, mask, shift, states, settings)
    finally:
        handle.remove()
    return states[0] + shift.detach()


def _descend(
    lm: LanguageModel,
    tokens: list[Tokens],
    ids: Tensor,
    mask: Tensor,
    shift: Tensor,
    states: list[Tensor],
    settings: TargetSettings,
) -> None:
    optimizer = torch.optim.Adam([shift], lr=settings.step_size(shift)[0])
    reference: Tensor | None = None
    for step in range(settings.steps):
        logp = torch.log_softmax(lm.model(input_ids=ids, attention_mask=mask).logits.float(), -1)
        nll = torch.zeros((), device=lm.device)
        for row, t in enumerate(tokens[:-1]):
            at = torch.arange(t.target_start - 1, t.target_start - 1 + len(t.target))
            nll = nll - logp[row, at, t.target].mean() / (len(tokens) - 1)
        current = logp[-1, tokens[-1].subject_last]
        reference = current.detach() if reference is None else reference
        divergence = (current.exp() * (current - reference)).sum()
        loss = nll + settings.kl_weight * divergence + settings.weight_decay * shift.norm() / states[0].norm() ** 2
        if step == settings.steps - 1 or loss < settings.stop_loss:
            break
        shift.grad = torch.autograd.grad(loss, shift)[0]
        optimizer.step()
        with torch.no_grad():
            shift.mul_((settings.clamp * states[0].norm() / shift.norm()).clamp_max(1.0))


def targets(batch: int = 20, repeats: int = 3, model: str = DEFAULT) -> Measurement:
    """The work of the papers: 25 evaluations, six contexts and the divergence."""
    name = f"z per edit, 25 evaluations, 6 contexts + KL, batch {batch}"
    return _targets(name, SETTINGS, 5, batch, 12, repeats, model)


def targets_default(repeats: int = 3, model: str = DEFAULT) -> Measurement:
    """The default run's settings and batch; requests that have converged stop on both sides, so no share is given."""
    settings = replace(SETTINGS, kl_weight=0.3, stop_loss=0.4, max_tokens=4096)
    return _targets("z per edit, default settings, batch 10", settings, 2, 10, 8, repeats, model)


def _targets(
    name: str, settings: TargetSettings, count: int, batch: int, target: float, repeats: int, model: str
) -> Measurement:
    """Seconds per edit, in bfloat16; correctness is checked in float32 first."""
    data = EditDataModule(offset=300, limit=batch)
    data.setup("fit")
    contexts = _check(model, data.requests[:2], count, settings)
    lm = model_of(model, "bfloat16")
    # Where requests stop on their own, as many are taken literally as stand for the batch.
    chosen = data.requests if settings.stop_loss else data.requests[:1]

    def ours() -> None:
        with fast_products(lm):  # in a run once for all batches
            optimize_targets(lm, data.requests, contexts, LAYER, settings)

    literal = lambda: [literal_target(lm, request, contexts, settings) for request in chosen]  # noqa: E731
    plain, fast = alternate(literal, ours, repeats)
    share = None
    if not settings.stop_loss:
        share = _operations(lm, data.requests, contexts) / fast / matmul_rate(torch.bfloat16)
    ratio = (plain / len(chosen)) / (fast / batch)
    return Measurement(titled(name, model), ratio, target, share, fast / batch, device_name())


def _check(model: str, requests: list[EditRequest], count: int, settings: TargetSettings) -> list[str]:
    """The same target as the literal procedure's; returns the contexts."""
    exact = model_of(model, "float32")
    contexts = contexts_of(model, exact, count)
    expected = literal_target(exact, requests[0], contexts, settings)
    found = optimize_targets(exact, requests, contexts, LAYER, settings).values[0]
    assert relative_error(found, expected) < TOLERANCE, relative_error(found, expected)
    return contexts


def _operations(lm: LanguageModel, requests: list[EditRequest], contexts: list[str]) -> float:
    """Operations that cannot be avoided: real tokens from the subject on, blocks above, forwards and backwards."""
    prompts = [in_context(request, context, request.target_new) for request in requests for context in contexts]
    tokens = tokenize(lm.tokenizer, prompts)
    columns = sum(len(t.ids) - 1 - t.subject_last for t in tokens) + len(requests)
    predicted = sum(len(t.target) for t in tokens) + len(requests)
    block = sum(p.numel() for p in lm.block(0).parameters())
    head = lm.config.hidden_size * lm.config.vocab_size
    once = 2 * columns * block * (lm.n_layers - LAYER - 1) + 2 * predicted * head
    return float(once * (SETTINGS.steps + SETTINGS.steps - 1))
