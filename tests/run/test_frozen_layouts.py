"""What no edit changes is laid out once a run: the same weights, and nothing stays behind."""

import lightning as L
import pytest
import torch

from sphere_pl.data.datamodule import EditLoader
from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editor import SequentialEditor
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.methods import AlphaEdit
from sphere_pl.model import laid_out
from sphere_pl.run.frozen_layouts import FrozenLayouts

LINEAR = pytest.mark.skipif(not laid_out._knows_layouts(), reason="this processor has no bfloat16 products")


@pytest.fixture
def layouts(monkeypatch):
    """The weights that are laid out, as often as they are."""
    found, original = [], laid_out._layouts
    monkeypatch.setattr(laid_out, "_layouts", lambda weight: found.append(weight) or original(weight))
    return found


@pytest.fixture
def edit(tiny_lm, tmp_path, requests, bare_trainer):
    def edit(*callbacks):
        (tmp_path / "corpus.txt").write_text("Rome is a city in Italy by the sea. An apple is a fruit.")
        editor = SequentialEditor(
            AlphaEdit(ridge=1.0, null_space_threshold=10.0),
            [1, 2],
            name="tiny",
            targets=TargetSettings(steps=3, learning_rate=0.5, clamp=2.0, weight_decay=0.0),
            statistics=StatisticsSettings(str(tmp_path / "corpus.txt"), tokens=15, cache_dir=str(tmp_path)),
            evaluation=EvaluationSettings(perplexity_tokens=64),
            contexts=1,
        )
        editor.lm = tiny_lm(dtype=torch.bfloat16)
        bare_trainer(max_epochs=1, callbacks=list(callbacks), val_check_interval=1).fit(editor, EditLoader(requests, 1))
        return editor

    return edit


def changed(editor):
    return [each for each in editor.language_model.model.modules() if "forward" in vars(each)]


@LINEAR
@pytest.mark.filterwarnings("ignore:The corpus")
def test_each_weight_above_the_edits_is_laid_out_once_a_run_and_the_edits_are_the_same(edit, layouts):
    plain, batches = edit(), len(layouts)
    layouts.clear()
    kept = edit(FrozenLayouts())
    above = [each.weight for each in kept.language_model.block(3).modules() if isinstance(each, torch.nn.Linear)]
    assert len(above) == 7
    assert [id(weight) for weight in layouts] == [id(weight) for weight in above]
    assert batches == 4 * len(above)  # four batches without it
    assert all(torch.equal(one, other) for one, other in zip(kept.weights, plain.weights, strict=True))
    assert kept.scores.after == plain.scores.after
    assert not changed(kept)


@LINEAR
@pytest.mark.filterwarnings("ignore:The corpus")
def test_a_run_that_breaks_off_leaves_the_blocks_as_they_were(edit):
    seen = []

    class Break(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            seen.append((pl_module, len(changed(pl_module))))
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        edit(FrozenLayouts(), Break())
    ((editor, during),) = seen
    assert during == 7
    assert not changed(editor)
