"""Kronecker factors of a language model's matrices against one token at a time."""

import pytest
import torch

from sphere_pl.editing.curvature import curvature_factors
from sphere_pl.editing.moments import StatisticsSettings


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "text.txt").write_text("The capital of France is Paris.\n\nRome is a city in Italy by the sea.")
    return StatisticsSettings(corpus=str(tmp_path / "text.txt"), length=16)


def reference(lm, site, settings, rows):
    """Every row alone, through the model's own forward."""
    draws = torch.Generator().manual_seed(settings.seed)
    inputs, gradients = [], []

    def hook(_, args, output):
        inputs.append(args[0].detach()[0].double())
        probe = torch.zeros_like(output).requires_grad_()
        probe.register_hook(lambda g: gradients.append(g[0].double()))
        return output + probe

    handle = site.module.register_forward_hook(hook)
    for row in rows:
        logits = lm.model(torch.tensor([row])).logits[0].float()
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=draws)
        torch.log_softmax(logits, -1).gather(1, drawn).sum().neg().backward()
    handle.remove()
    k, g = torch.cat(inputs), torch.cat(gradients)
    return k.T @ k / len(k), g.T @ g / len(g)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
@pytest.mark.filterwarnings("ignore:The corpus")
def test_factors_are_the_moments_of_inputs_and_gradients(tiny_lm, settings, model_type):
    lm = tiny_lm(model_type)
    sites = lm.sites([1, 2])
    found = curvature_factors(lm, sites, StatisticsSettings(corpus=settings.corpus, length=16, batch_size=1), 60)
    rows = [row for _, row in sorted(_rows(lm, settings).items())]
    for site in sites:
        for mine, other in zip(found[site.name], reference(lm, site, settings, rows), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def _rows(lm, settings):
    """Rows of one length together, as they are run; the lengths in the order in which they come."""
    from sphere_pl.editing.moments import corpus_rows
    from sphere_pl.progress import untracked

    rows = corpus_rows(lm, settings.settled(), 60, untracked)
    order = sorted(range(len(rows)), key=lambda i: next(j for j, r in enumerate(rows) if len(r) == len(rows[i])))
    return dict(enumerate(rows[i] for i in order))


@pytest.mark.filterwarnings("ignore:The corpus")
def test_the_model_is_as_it_was(tiny_lm, settings):
    lm = tiny_lm()
    before = [p.clone() for p in lm.model.parameters()]
    curvature_factors(lm, lm.sites([1]), settings, 40)
    assert all(p.grad is None and torch.equal(p, b) for p, b in zip(lm.model.parameters(), before, strict=True))
