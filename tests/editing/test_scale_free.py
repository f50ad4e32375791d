"""A model whose residual stream is ten times as large computes the same and is edited alike."""

import pytest
import torch

from sphere_pl.data.datamodule import EditLoader
from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editor import SequentialEditor
from sphere_pl.errors import UserError
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.methods import EMMET, FT, MEMIT, ROME, AlphaEdit, LocFTBF, UltraEdit

SCALE = 8.0  # a power of two: products are rounded alike


def larger(lm):
    """The twin: what enters the stream is so many times as large, and norms divide by it."""
    for name, parameter in lm.model.named_parameters():
        if name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
            parameter.data *= SCALE
    return lm


@pytest.fixture
def logits_after(tiny_lm, tmp_path, bare_trainer, requests):
    """Edit a model or its twin; returns logits of the edited model, and what they were."""
    (tmp_path / "corpus.txt").write_text("The capital of France is Paris. Rome is a city in Italy by the sea. " * 20)
    statistics = StatisticsSettings(corpus=str(tmp_path / "corpus.txt"), tokens=300, cache_dir=str(tmp_path / "cache"))

    def run(method, twin, targets):
        lm = tiny_lm("llama")
        lm.model.config.tie_word_embeddings = False
        for module in lm.model.modules():
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon = 0.0
        lm = larger(lm) if twin else lm
        ids = torch.tensor([lm.tokenizer("Rome is a city in Italy")["input_ids"]])
        before = lm.model(ids).logits.detach().clone()
        layers = [1] if method.max_layers == 1 else [0, 1]
        editor = SequentialEditor(
            method, layers, name="tiny", targets=targets, statistics=statistics, contexts=0,
            evaluation=EvaluationSettings(perplexity_tokens=0, protocols=["teacher_forced"], cases=0, facts=0),
        )  # fmt: skip
        editor.lm = lm
        size = method.max_batch_size or 2
        bare_trainer(max_epochs=1).fit(editor, EditLoader(requests[:2], size))
        return before, lm.model(ids).logits.detach()

    return run


@pytest.mark.filterwarnings("ignore:The corpus")
@pytest.mark.parametrize(
    "method", [AlphaEdit(), MEMIT(), MEMIT(remember_past=True), EMMET(), ROME(), FT(), LocFTBF(), UltraEdit()],
    ids=lambda method: method.name,
)  # fmt: skip
def test_a_stream_so_many_times_as_large_gives_the_same_edits(logits_after, method):
    targets = TargetSettings(steps=5, weight_decay=0.1)
    (before, after), (twin_before, twin_after) = (logits_after(method, twin, targets) for twin in (False, True))
    torch.testing.assert_close(twin_before, before, rtol=1e-4, atol=1e-4)
    assert (after - before).abs().max() > 0.01  # something was edited
    torch.testing.assert_close(twin_after, after, rtol=1e-2, atol=1e-3 + 1e-2 * float((after - before).abs().max()))


def test_absolute_settings_do_not_give_the_same_edits(logits_after):
    targets = TargetSettings(steps=5, learning_rate=0.05)
    (_, after), (_, twin_after) = (logits_after(AlphaEdit(), twin, targets) for twin in (False, True))
    assert (twin_after - after).abs().max() > 0.05


def test_a_learning_rate_that_is_given_is_absolute_unless_it_says_otherwise():
    base = torch.full((1, 4), 3.0)
    assert TargetSettings(learning_rate=0.5).step_size(base) == (0.5, None)
    rate, unit = TargetSettings(learning_rate=0.5, units="state").step_size(base)
    assert (rate, float(unit)) == (0.5, 3.0)
    rate, unit = TargetSettings().step_size(base)
    assert 0 < rate < 1
    assert float(unit) == 3.0
    with pytest.raises(UserError, match=r"targets\.learning_rate"):
        TargetSettings(units="absolute")
    with pytest.raises(UserError, match="state or absolute"):
        TargetSettings(units="metres")
