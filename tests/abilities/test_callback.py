"""General abilities in a run: when they are scored, on which weights, and that nothing else changes."""

import json

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from sphere_callbacks import SpectrumRestraint
from sphere_pl.abilities import callback as module
from sphere_pl.abilities.callback import GeneralAbilities
from sphere_pl.abilities.evaluate import evaluate, load_items
from sphere_pl.abilities.tasks import TASKS
from sphere_pl.data.datamodule import EditLoader
from sphere_pl.errors import UserError

TWO = ["boolq", "nq"]


@pytest.fixture
def fit(editor, requests, bare_trainer, logged):
    """Edit four facts one by one; returns the editor."""

    def run(*callbacks, ckpt_path=None, **settings):
        torch.manual_seed(0)  # the contexts are sampled with it
        built = editor()
        trainer = bare_trainer(max_epochs=1, callbacks=list(callbacks), logger=logged, **settings)
        trainer.fit(built, EditLoader(requests, 1), ckpt_path=ckpt_path)
        return built

    return run


@pytest.fixture
def counted(monkeypatch):
    """Names of the tasks that were evaluated, in order."""
    names = []
    monkeypatch.setattr(
        module, "evaluate", lambda lm, task, *rest: names.append(task.name) or evaluate(lm, task, *rest)
    )
    return names


def test_without_tasks_nothing_happens(fit, logged, tmp_path):
    callback = GeneralAbilities(keep=str(tmp_path / "kept.json"))
    fit(callback)
    assert callback.summary() == {}
    assert not any(name.startswith("abilities") for row in logged.rows for name in row)
    assert not (tmp_path / "kept.json").exists()


@pytest.mark.parametrize(("every", "edits"), [(None, [0, 4]), (2, [0, 2, 4]), (3, [0, 3, 4])])
def test_abilities_are_scored_before_the_first_edit_every_few_batches_and_at_the_end(
    fit, logged, data_dir, counted, every, edits
):
    fit(GeneralAbilities(["boolq"], every=every, data_dir=str(data_dir)))
    assert [at for at, _ in logged.series("abilities/boolq")] == edits
    assert counted == ["boolq"] * len(edits)


def test_scores_are_those_of_the_unedited_and_of_the_edited_model(fit, editor, data_dir, logged):
    callback = GeneralAbilities(TWO, data_dir=str(data_dir), limit=2, seed=3)
    edited = fit(callback)
    for name in TWO:
        items = load_items(TASKS[name], str(data_dir), 2, 3)
        before, after = evaluate(editor().lm, TASKS[name], items), evaluate(edited.lm, TASKS[name], items)
        found = callback.summary()[name]
        assert (found["before"], found["after"]) == (before.value, after.value)
        assert found["standard_error"] == after.standard_error
        assert found["before_standard_error"] == before.standard_error
        assert found["items"] == 2
        assert [value for _, value in logged.series(f"abilities/{name}")] == pytest.approx([before.value, after.value])


def test_scoring_changes_no_weight(fit, data_dir):
    plain, scored = fit(), fit(GeneralAbilities(TWO, every=1, data_dir=str(data_dir)))
    for one, other in zip(plain.weights, scored.weights, strict=True):
        assert torch.equal(one, other)
    state = torch.get_rng_state()
    fit(GeneralAbilities(TWO, every=1, data_dir=str(data_dir)))
    torch.set_rng_state(state)


def test_a_run_that_stops_early_is_scored_where_it_stopped(fit, logged, data_dir):
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.should_stop = batch_idx == 1

    fit(Stop(), GeneralAbilities(["boolq"], data_dir=str(data_dir)))
    assert [at for at, _ in logged.series("abilities/boolq")] == [0, 2]
    logged.rows.clear()
    fit(GeneralAbilities(["boolq"], data_dir=str(data_dir)), max_steps=3)
    assert [at for at, _ in logged.series("abilities/boolq")] == [0, 3]


def test_restrained_weights_are_the_ones_that_are_scored(fit, data_dir, monkeypatch):
    seen = []

    def look(lm, task, *rest):
        seen.append(lm.block(2).mlp.down_proj.weight.clone())
        return evaluate(lm, task, *rest)

    monkeypatch.setattr(module, "evaluate", look)
    restraint = SpectrumRestraint()
    edited = fit(restraint, GeneralAbilities(["boolq"], data_dir=str(data_dir)))
    live = edited.weights[1].detach()
    with restraint.swapped(edited):
        restrained = edited.weights[1].detach().clone()
    assert not torch.equal(live, restrained)
    assert torch.equal(seen[-1], restrained)
    assert torch.equal(edited.lm.block(2).mlp.down_proj.weight, live)


def test_an_interrupted_evaluation_goes_on_with_the_tasks_that_are_left(fit, data_dir, tmp_path, counted, monkeypatch):
    settings = {"data_dir": str(data_dir), "keep": str(tmp_path / "kept.json")}
    watched = module.evaluate

    def interrupt(lm, task, *rest):
        if task.name == "nq":
            raise RuntimeError("power cut")
        return watched(lm, task, *rest)

    monkeypatch.setattr(module, "evaluate", interrupt)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(GeneralAbilities(TWO, **settings))
    assert counted == ["boolq"]
    monkeypatch.setattr(module, "evaluate", watched)
    fit(GeneralAbilities(TWO, **settings))
    assert counted == ["boolq", "nq", "boolq", "nq"]  # the unedited boolq was kept
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert sorted((entry["task"], entry["edits"]) for entry in kept.values()) == [
        ("boolq", 0), ("boolq", 4), ("nq", 0), ("nq", 4),
    ]  # fmt: skip


def test_other_items_or_other_weights_are_scored_anew(fit, data_dir, tmp_path, counted):
    keep = str(tmp_path / "kept.json")
    fit(GeneralAbilities(["boolq"], data_dir=str(data_dir), keep=keep))
    fit(GeneralAbilities(["boolq"], data_dir=str(data_dir), keep=keep))
    assert len(counted) == 2
    fit(GeneralAbilities(["boolq"], data_dir=str(data_dir), keep=keep, limit=2))
    assert len(counted) == 4


def test_a_resumed_run_keeps_the_scores_of_the_unedited_model(fit, data_dir, tmp_path, counted, logged):
    class Save(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                trainer.save_checkpoint(tmp_path / "two.ckpt")

    first = GeneralAbilities(["boolq"], data_dir=str(data_dir))
    fit(first, Save())
    counted.clear()
    logged.rows.clear()
    second = GeneralAbilities(["boolq"], data_dir=str(data_dir))
    fit(second, ckpt_path=tmp_path / "two.ckpt")
    assert counted == ["boolq"]
    assert second.before == first.before
    assert [at for at, _ in logged.series("abilities/boolq")] == [4]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tasks": ["boolq", "boolk"]}, "--abilities.tasks: 'boolk' is unknown. Known: gsm8k"),
        ({"every": 0}, "--abilities.every=0 must be at least 1"),
        ({"limit": 0}, "--abilities.limit=0 must be at least 1"),
        ({"batch_tokens": 0}, "--abilities.batch_tokens=0 must be at least 1"),
    ],
)
def test_a_wrong_argument_is_refused(settings, words):
    with pytest.raises(UserError, match=words):
        GeneralAbilities(**settings)


def test_missing_data_ends_a_run_before_anything_is_edited(fit, tmp_path):
    with pytest.raises(UserError, match=r"'boolq' needs boolq-dev.jsonl"):
        fit(GeneralAbilities(["boolq"], data_dir=str(tmp_path)))


def test_another_module_is_refused(bare_trainer, data_dir):
    from lightning.pytorch.demos.boring_classes import BoringModel

    with pytest.raises(
        MisconfigurationException, match=r"`GeneralAbilities` acts on .*found BoringModel.*abilities\.evaluate"
    ):
        bare_trainer(max_epochs=1, callbacks=[GeneralAbilities(["boolq"], data_dir=str(data_dir))]).fit(BoringModel())


def test_a_damaged_file_of_kept_scores_is_named(fit, data_dir, tmp_path):
    (tmp_path / "kept.json").write_text("{")
    with pytest.raises(UserError, match=r"kept.json is damaged .*Delete it"):
        fit(GeneralAbilities(["boolq"], data_dir=str(data_dir), keep=str(tmp_path / "kept.json")))
