"""A run lays out what it does not edit, and leaves the model as it was however it ends."""

from contextlib import nullcontext

import lightning as L
import pytest
import torch

from sphere_pl.data.datamodule import EditLoader
from sphere_pl.editing.guard import GuardSettings
from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editor import SequentialEditor
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.methods import AlphaEdit
from sphere_pl.model import products as module


class Watch(L.Callback):
    """Count what is laid out while a batch is edited; stop the run there if asked to."""

    def __init__(self, fails):
        self.fails, self.seen = fails, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        edited = {id(site.module) for site in pl_module.sites}
        laid_out = {id(each) for each in pl_module.language_model.modules() if "forward" in vars(each)}
        self.seen = [len(laid_out), len(laid_out & edited)]
        if self.fails:
            raise RuntimeError("stopped")


@pytest.mark.skipif(not module.knows_layouts(), reason="this processor has no bfloat16 products")
@pytest.mark.parametrize("fails", [False, True])
def test_layouts_are_there_while_a_run_edits_and_gone_afterwards(
    tiny_lm, requests, bare_trainer, tmp_path, fails, monkeypatch
):
    monkeypatch.setattr(module, "has_units", lambda dtype: True)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("The capital of France is Paris.")
    editor = SequentialEditor(
        AlphaEdit(ridge=1.0, null_space_threshold=10.0),
        [1],
        targets=TargetSettings(steps=2, learning_rate=0.5, clamp=4.0),
        statistics=StatisticsSettings(corpus=str(corpus), tokens=8, cache_dir=str(tmp_path / "cache")),
        evaluation=EvaluationSettings(perplexity_tokens=8),
        guard=GuardSettings(first_batch="off"),
        contexts=0,
    )
    editor.lm, watch = tiny_lm(dtype=torch.bfloat16), Watch(fails)
    trainer = bare_trainer(max_epochs=1, limit_val_batches=0, callbacks=[watch])
    with pytest.raises(RuntimeError, match="stopped") if fails else nullcontext():
        trainer.fit(editor, EditLoader(requests[:1], batch_size=1))
    assert watch.seen[0] > 0
    assert watch.seen[1] == 0
    assert not any("forward" in vars(each) for each in editor.language_model.modules())
