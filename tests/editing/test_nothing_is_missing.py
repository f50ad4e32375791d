"""What is asked of the model's states is what they gain, in every family: an edit without a regulariser is exact."""

import pytest
import torch

from sphere_pl.data.datamodule import EditLoader
from sphere_pl.editing.guard import GuardSettings
from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.editing.representations import SubjectStream
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editor import SequentialEditor
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.methods import MEMIT

MOST = {1: 0.01, 2: 0.05, 4: 0.05}  # share still missing, by the number of edited layers
LAYERS = {1: [2], 2: [1, 2], 4: [0, 1, 2, 3]}


@pytest.fixture
def edited(tiny_lm, tmp_path, bare_trainer, monkeypatch):
    """Edit some requests at once without a regulariser; returns the states before, after, and the target values."""
    # What is asked is asked as it stands, at every block: this is about the solve, not about which requests it suits.
    monkeypatch.setattr("sphere_pl.editing.preparation.check_last_block", lambda *_: None)
    monkeypatch.setattr("sphere_pl.editing.key_plan.at_sinks", lambda *_: [])
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("The capital of France is Paris.\n\nRome is a city in Italy by the sea.")

    def edit(family, layers, requests, seed=0):
        editor = SequentialEditor(
            MEMIT(second_moment_weight=1e-3),
            layers,
            name="tiny",
            targets=TargetSettings(steps=12, learning_rate=0.5, clamp=4, weight_decay=0, same_key=2),
            statistics=StatisticsSettings(corpus=str(corpus), tokens=20, cache_dir=str(tmp_path / "cache")),
            evaluation=EvaluationSettings(perplexity_tokens=0, protocols=["teacher_forced"], cases=0, facts=0),
            contexts=0,
            guard=GuardSettings(max_norm_ratio=1e6),  # what is asked for is large beside these random matrices
        )
        editor.lm = uneven(tiny_lm(family, seed=seed), layers)

        def states():
            return SubjectStream(editor.lm, requests, [""], layers[0]).values(layers[-1])

        before = states()
        bare_trainer(max_epochs=1).fit(editor, EditLoader(requests, len(requests)))
        return before, states(), editor.targets.values

    return edit


def uneven(lm, layers):
    """Give output norms gains like those of trained models: of very different size, some of them nearly zero."""
    generator = torch.Generator().manual_seed(0)
    for site in lm.sites(layers):
        for weight in site.output.norm.parameters() if site.output.norm is not None else ():
            gains = torch.rand(weight.shape, generator=generator) * 2
            gains[:2] = torch.tensor([1e-5, 1e-3])
            weight.data += gains - site.output.gains(weight[None])  # the weight is the gain, or the gain less one
    return lm


def missing(before, after, wanted):
    """The share of what was asked for that the states have not gained, over the batch."""
    return float((wanted - after).norm() / (wanted - before).norm())


@pytest.mark.filterwarnings("ignore:The corpus")
@pytest.mark.parametrize("count", MOST)
def test_an_unregularised_edit_leaves_nothing_missing(edited, family, requests, count):
    # At the last block a shift is seen by what is predicted at the subject alone: there the questions end.
    asked = requests[:2] if count < 4 else [r._replace(prompt=r.prompt.partition("{}")[0] + "{}") for r in requests[:2]]
    found = missing(*edited(family, LAYERS[count], asked))
    assert found < MOST[count]
