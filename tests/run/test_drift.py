"""The alarm after every batch against full distributions in float64."""

import math

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from sphere_pl.data.datamodule import EditLoader
from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editor import EvaluationSettings, SequentialEditor
from sphere_pl.errors import UserError
from sphere_pl.evaluation.scoring import held_out, predicting_states
from sphere_pl.methods import AlphaEdit
from sphere_pl.run.drift import Drift, compare, distributions

TEXT = "The capital of France is Paris. Rome is a city in Italy. You and I speak because of it by the sea."


def slow(lm, other, text, tokens, length):
    """Perplexity and KL piece by piece, in float64, with every distribution in full."""
    ids = lm.tokenizer(text)["input_ids"][:tokens]
    likelihood, divergence, count = 0.0, 0.0, 0
    for start in range(0, len(ids), length):
        piece = ids[start : start + length]
        with torch.no_grad():
            p, q = (m.model(input_ids=torch.tensor([piece])).logits[0].double().log_softmax(-1) for m in (lm, other))
        for place in range(len(piece) - 1):
            likelihood += p[place, piece[place + 1]].item()
            divergence += (p[place].exp() * (p[place] - q[place])).sum().item()
            count += 1
    return math.exp(-likelihood / count), divergence / count


def change(lm, seed=1):
    """The same model with other down-projections."""
    generator = torch.Generator().manual_seed(seed)
    for site in lm.sites([1, 2]):
        site.write(site.read() + 0.1 * torch.randn(site.read().shape, generator=generator))
    return lm


@pytest.mark.parametrize("bos", [False, True])
def test_drift_is_that_of_full_distributions_in_double_precision(tiny_lm, family, bos):
    before, after = tiny_lm(family, bos=bos), change(tiny_lm(family, bos=bos))
    text = held_out(before, TEXT, tokens=50, length=16)
    unedited = predicting_states(before, text)
    found = compare(after, predicting_states(after, text), unedited, text.labels)
    perplexity, kl = slow(after, before, TEXT, 50, 16)
    assert found.perplexity == pytest.approx(perplexity, rel=1e-4)
    assert found.kl == pytest.approx(kl, rel=1e-3)
    assert found.kl > 1e-3


def test_distributions_that_are_kept_give_the_same_reading_to_the_bit_and_many_are_not(tiny_lm, monkeypatch):
    before, after = tiny_lm(), change(tiny_lm())
    text = held_out(before, TEXT, tokens=50, length=16)
    unedited, current = predicting_states(before, text), predicting_states(after, text)
    kept = distributions(before, unedited)
    assert len(kept) == 1
    assert compare(after, current, unedited, text.labels, kept) == compare(after, current, unedited, text.labels)
    monkeypatch.setattr("sphere_pl.run.drift.POSITIONS", len(unedited) - 1)
    assert distributions(before, unedited) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_unedited_model_has_drifted_by_nothing(tiny_lm, dtype):
    lm = tiny_lm(dtype=dtype)
    text = held_out(lm, TEXT, tokens=50, length=16)
    states = predicting_states(lm, text)
    assert compare(lm, predicting_states(lm, text), states, text.labels).kl == 0.0


@pytest.fixture
def fit(tiny_lm, tmp_path, requests, bare_trainer):
    (tmp_path / "corpus.txt").write_text(TEXT)

    def run(*callbacks, dtype=torch.float32, ckpt_path=None, **settings):
        editor = SequentialEditor(
            AlphaEdit(ridge=0.1, null_space_threshold=10.0),
            [1, 2],
            name="tiny",
            targets=TargetSettings(steps=4, learning_rate=0.5, clamp=4.0, weight_decay=0.0),
            statistics=StatisticsSettings(
                corpus=str(tmp_path / "corpus.txt"), tokens=10, cache_dir=str(tmp_path / "cache")
            ),
            evaluation=EvaluationSettings(perplexity_tokens=0),
            contexts=1,
        )
        editor.lm = tiny_lm(dtype=dtype)
        trainer = bare_trainer(max_epochs=1, callbacks=list(callbacks), **settings)
        trainer.fit(editor, EditLoader(requests, 1), ckpt_path=ckpt_path)
        return editor, trainer

    return run


def test_every_batch_is_compared_with_the_model_before_the_first(fit, tiny_lm, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    editor, trainer = fit(Drift(tokens=50, length=16, text=str(tmp_path / "text.txt")))
    perplexity, kl = slow(editor.lm, tiny_lm(), TEXT, 50, 16)
    assert trainer.callback_metrics["drift/perplexity"].item() == pytest.approx(perplexity, rel=1e-4)
    assert trainer.callback_metrics["drift/kl"].item() == pytest.approx(kl, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_alarm_changes_no_weight(fit, dtype):
    (plain, _), (watched, _) = fit(dtype=dtype), fit(Drift(tokens=50), dtype=dtype)
    assert all(torch.equal(a, b) for a, b in zip(plain.weights, watched.weights, strict=True))


def test_a_resumed_run_compares_with_the_same_model(fit, tmp_path):
    class Save(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                trainer.save_checkpoint(tmp_path / "two.ckpt")

    whole = fit(Drift(tokens=50), Save())[1].callback_metrics["drift/kl"]
    resumed = fit(Drift(tokens=50), ckpt_path=tmp_path / "two.ckpt")[1].callback_metrics["drift/kl"]
    assert torch.equal(whole, resumed)


def test_it_is_read_every_few_batches_or_not_at_all(fit, monkeypatch):
    from sphere_pl.run import drift

    readings = []
    monkeypatch.setattr(drift, "compare", lambda *args: readings.append(1) or compare(*args))
    fit(Drift(tokens=50, every=2))
    assert len(readings) == 2
    fit(Drift(tokens=0))
    assert len(readings) == 2


def test_wrong_arguments_and_modules_are_refused(tiny_lm, bare_trainer):
    from lightning.pytorch.demos.boring_classes import BoringModel

    for settings in ({"tokens": 1}, {"every": 0}, {"length": 1}):
        with pytest.raises(UserError, match="must be"):
            Drift(**settings)
    with pytest.raises(UserError, match="is empty"):
        held_out(tiny_lm(), "", 50, 16)
    with pytest.raises(MisconfigurationException, match="found BoringModel"):
        bare_trainer(max_epochs=1, callbacks=[Drift()]).fit(BoringModel())
