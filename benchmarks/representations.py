"""Keys and values of a batch, and the keys to remember, against a full forward for every site and request."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.language_models import DEFAULT, contexts_of, model_of, titled
from benchmarks.measure import Measurement, alternate, device_name, matmul_rate, relative_error
from sphere_pl.data.datamodule import EditDataModule
from sphere_pl.data.request import EditRequest
from sphere_pl.editing.representations import SubjectStream, capture_input, context_weights
from sphere_pl.model.batching import pad
from sphere_pl.model.families import EditSite
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.tokens import in_context, tokenize

LAYERS = [4, 5, 6, 7, 8]
Found = tuple[list[Tensor], list[Tensor], list[Tensor]]


@torch.no_grad()
def literal_key(lm: LanguageModel, request: EditRequest, contexts: Sequence[str], site: EditSite) -> Tensor:
    """The key of one request at one site: all contexts through the whole model, to the end of the prompt."""
    tokens = tokenize(lm.tokenizer, [in_context(request, context) for context in contexts])
    ids, mask = pad([each.ids for each in tokens], lm.pad_id, lm.device)
    with capture_input(site.module) as inputs:
        lm.model(input_ids=ids, attention_mask=mask)
    subject = torch.tensor([each.subject_last for each in tokens], device=lm.device)
    found = inputs[0][torch.arange(len(tokens), device=lm.device), subject].float()
    return context_weights(len(contexts)).to(found) @ found


@torch.no_grad()
def literal_value(lm: LanguageModel, request: EditRequest, layer: int) -> Tensor:
    """The value of one request: the plain prompt through the whole model."""
    (tokens,) = tokenize(lm.tokenizer, [in_context(request)])
    seen: list[Tensor] = []

    def look(_: nn.Module, __: object, output: Tensor) -> None:
        seen.append(output)

    handle = lm.block(layer).register_forward_hook(look)
    try:
        lm.model(input_ids=torch.tensor([tokens.ids], device=lm.device))
    finally:
        handle.remove()
    return seen[0][0, tokens.subject_last].float()


def literal(lm: LanguageModel, request: EditRequest, contexts: Sequence[str]) -> Found:
    """What one batch of one request asks of the model beside its target: keys and values, then keys to remember."""
    sites = lm.sites(LAYERS)
    keys, values = [], []
    for site in sites:
        keys.append(literal_key(lm, request, contexts, site))
        values.append(literal_value(lm, request, LAYERS[-1]))
    return keys, values, [literal_key(lm, request, contexts, site) for site in sites]


def ours(lm: LanguageModel, requests: Sequence[EditRequest], contexts: Sequence[str]) -> Found:
    """The same for a whole batch."""
    sites = lm.sites(LAYERS)
    stream = SubjectStream(lm, requests, contexts, LAYERS[0])
    keys, values = [], []
    for site in sites:
        keys.append(stream.keys(site))
        values.append(stream.values(LAYERS[-1]))
    return keys, values, list(stream.all_keys(sites))


def keys_and_values(batch: int = 100, repeats: int = 3, model: str = DEFAULT) -> Measurement:
    """Seconds per edit, in bfloat16, five sites, six contexts; checked in float32 first."""
    data = EditDataModule(offset=300, limit=batch)
    data.setup("fit")
    contexts = _check(model, data.requests[:5])
    lm = model_of(model, "bfloat16")
    plain, fast = alternate(
        lambda: [literal(lm, request, contexts) for request in data.requests[:5]],
        lambda: ours(lm, data.requests, contexts),
        repeats,
    )
    share = _operations(lm, data.requests, contexts) / fast / matmul_rate(torch.bfloat16)
    name = f"keys and values per edit, {len(LAYERS)} layers, 6 contexts, batch {batch}"
    return Measurement(titled(name, model), (plain / 5) / (fast / batch), 10, share, fast / batch, device_name())


def _check(model: str, requests: list[EditRequest]) -> list[str]:
    """The same keys and values as from full forwards; returns the contexts."""
    exact = model_of(model, "float32")
    contexts = contexts_of(model, exact, 5)
    found, expected = ours(exact, requests, contexts), literal(exact, requests[2], contexts)
    for many, one in zip(found, expected, strict=True):
        for each, reference in zip(many, one, strict=True):
            assert relative_error(each[2], reference) < 1e-4
    return contexts


def _operations(lm: LanguageModel, requests: Sequence[EditRequest], contexts: Sequence[str]) -> float:
    """Operations that cannot be avoided: tokens up to the subject through the blocks, twice where weights change."""
    tokens = tokenize(lm.tokenizer, [in_context(request, context) for context in contexts for request in requests])
    columns = [each.subject_last + 1 for each in tokens]
    block = sum(parameter.numel() for parameter in lm.block(0).parameters())
    edited = len(LAYERS)
    runs = LAYERS[0] + 2 * edited - 1  # to the first edited block, through the edited ones, and again when edited
    values = edited * (edited - 1) // 2
    return float(2 * block * (sum(columns) * runs + sum(columns[: len(requests)]) * values))
