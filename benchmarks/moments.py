"""Second moments of five layers in one pass against one pass a layer, document after document, whole model."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.language_models import DEFAULT, model_of, titled
from benchmarks.measure import Measurement, alternate, device_name, matmul_rate, relative_error
from sphere_pl.data.builtin import heldout_text
from sphere_pl.editing.moments import StatisticsSettings, compute_second_moments
from sphere_pl.editing.representations import capture_input
from sphere_pl.model.families import EditSite
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.progress import untracked

LAYERS = [4, 5, 6, 7, 8]


@torch.no_grad()
def literal(lm: LanguageModel, site: EditSite, sequences: list[list[int]]) -> Tensor:
    """The second moment of one layer, as the authors' code finds it: one sequence at a time through everything."""
    total, count = torch.zeros((), dtype=torch.float64, device=lm.device), 0
    for ids in sequences:
        with capture_input(site.module) as inputs:
            lm.model(input_ids=torch.tensor([ids], device=lm.device))
        keys = inputs[0][0].float()
        total, count = total + (keys.T @ keys).double(), count + len(keys)
    return (total / count).float()


def moments(tokens: int = 2048, repeats: int = 3, model: str = DEFAULT) -> Measurement:
    """Seconds for 2,048 tokens of the held-out text, in bfloat16; checked in float32 first."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.txt"
        corpus.write_text(heldout_text(), encoding="utf-8")
        return _moments(StatisticsSettings(corpus=str(corpus), tokens=tokens), repeats, model)


def _moments(settings: StatisticsSettings, repeats: int, model: str) -> Measurement:
    sequences = _check(model, settings)
    lm = model_of(model, "bfloat16")
    plain, fast = alternate(
        lambda: [literal(lm, each, sequences) for each in lm.sites(LAYERS)], lambda: _ours(lm, settings), repeats
    )
    total, d_in = sum(map(len, sequences)), max(lm.sites(LAYERS)[-1].stored.shape)
    block = sum(parameter.numel() for parameter in lm.block(0).parameters())
    # In bfloat16 through the blocks, in float32 where keys meet keys: the ceiling is the time that both would take.
    least = 2 * total * block * (LAYERS[-1] + 1) / matmul_rate(torch.bfloat16)
    least += 2 * total * d_in**2 * len(LAYERS) / matmul_rate(torch.float32)
    name = f"second moments, {len(LAYERS)} layers, {total} tokens"
    return Measurement(titled(name, model), plain / fast, 5, least / fast, fast, device_name())


def _check(model: str, settings: StatisticsSettings) -> list[list[int]]:
    """The same moment as document after document; returns the sequences."""
    exact = model_of(model, "float32")
    sequences = _sequences(exact, settings)
    found, site = _ours(exact, settings), exact.sites(LAYERS)[-1]
    assert relative_error(found[site.name], literal(exact, site, sequences)) < 1e-4
    return sequences


def _ours(lm: LanguageModel, settings: StatisticsSettings) -> dict[str, Tensor]:
    found = compute_second_moments(lm, lm.sites(LAYERS), settings, untracked)
    return {name: moment.matrix for name, moment in found.items()}


def _sequences(lm: LanguageModel, settings: StatisticsSettings) -> list[list[int]]:
    """The token sequences that the settings ask for."""
    found: list[list[int]] = []
    for document in Path(settings.corpus or "").read_text(encoding="utf-8").split("\n\n"):
        ids = lm.tokenizer(document.strip())["input_ids"]
        for start in range(0, len(ids), settings.length):
            found.append(ids[start : start + settings.length])
            if sum(map(len, found)) >= (settings.tokens or 0):
                return found
    return found
