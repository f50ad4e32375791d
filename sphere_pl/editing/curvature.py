"""Kronecker factors of the edited matrices: how curved the loss over ordinary text is along each direction."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sphere_callbacks.curvature import record_factors
from sphere_pl.editing.moments import StatisticsSettings, corpus_rows
from sphere_pl.model.attention import gradient_attention
from sphere_pl.model.families import EditSite
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.process.failures import doing
from sphere_pl.progress import Track, untracked

_TOKENS = 512  # in one forward and backward pass: the logits of all of them are in memory


@doing("measuring curvature")
def curvature_factors(
    lm: LanguageModel,
    sites: Sequence[EditSite],
    settings: StatisticsSettings,
    tokens: int,
    track: Track = untracked,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Second moments of each matrix's inputs and of the gradients at its outputs.

    The loss is the negative log-likelihood of tokens drawn from the model's own predictions at every position: its
    Gauss-Newton matrix, which the factors approximate, is then met in the mean, whatever the text says next.

    Args:
        lm: The language model, unedited.
        sites: The matrices.
        settings: Which text, and the seed.
        tokens: How many of its tokens.
        track: Shows progress.

    Returns:
        `E[k kᵀ]` `[d_in, d_in]` and `E[g gᵀ]` `[d_out, d_out]`, float64, by the matrix's name.
    """
    draws = torch.Generator(lm.output_device).manual_seed(settings.seed)
    rows = corpus_rows(lm, settings.settled(), tokens, track)
    batches = list(_of_one_length(rows, settings.batch_size))
    with record_factors({site.name: site.module for site in sites}) as factors:
        for ids in track(batches, "measuring curvature", len(batches)):
            _backward(lm, torch.tensor(ids, device=lm.device), sites[0].layer, draws)
    return factors.moments()


def _of_one_length(rows: Sequence[Sequence[int]], most: int) -> Iterator[list[Sequence[int]]]:
    """Rows that are run together: padding would count as input."""
    by_length: dict[int, list[Sequence[int]]] = defaultdict(list)
    for row in rows:
        by_length[len(row)].append(row)
    for length, same in by_length.items():
        size = max(1, min(most, _TOKENS // length))
        yield from (same[start : start + size] for start in range(0, len(same), size))


def _backward(lm: LanguageModel, ids: Tensor, first: int, draws: torch.Generator) -> None:
    """Differentiate the loss of one batch; whoever listens at the matrices sees the gradients."""
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    calls = lm.block_calls(ids, torch.ones_like(ids), positions)
    with torch.no_grad():
        hidden = lm.run(calls.hidden, calls, 0, first)
    with torch.enable_grad(), gradient_attention(lm):
        logits = lm.logits(lm.run(hidden, calls, first, lm.n_layers).flatten(0, 1)).float()
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=draws)
        torch.log_softmax(logits, -1).gather(1, drawn).sum().neg().backward()
