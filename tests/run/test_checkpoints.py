"""A run that is cut off anywhere goes on from its newest whole checkpoint as if nothing had happened."""

import csv
import signal
import time

import lightning as L
import pytest
import torch

from sphere_callbacks import EnergyCorrelation, HypersphericalEnergy, SparseProjection, SpectrumRestraint
from sphere_pl.data.datamodule import EditLoader
from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editor import SequentialEditor
from sphere_pl.errors import UserError
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.methods import AlphaEdit
from sphere_pl.process.interrupts import RunInterrupted
from sphere_pl.run.checkpoints import RunCheckpoints, checkpoint_paths, newest_checkpoint
from sphere_pl.run.loggers import MetricsFile
from sphere_pl.storage.checkpoint_file import read_checkpoint, write_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:The corpus", "ignore:.*logging interval")


class Cut(Exception):
    """What a killed process would not even raise."""


class CutAt(L.Callback):
    """End the run at a hook of a batch."""

    def __init__(self, hook, batch):
        self.batch = batch
        setattr(self, hook, self.cut)

    def cut(self, trainer, *_, **__):
        if trainer.fit_loop.epoch_loop.batch_progress.total.ready == self.batch:
            raise Cut


@pytest.fixture
def data(requests):
    rich = [
        r._replace(paraphrases=(f"So {r.question}",), neighbors=("Berlin is a city in",), neighbor_answers=("Germany",))
        for r in requests
    ]
    return [r._replace(case_id=f"{r.case_id}{i}") for i in range(2) for r in rich][:6]


@pytest.fixture
def fit(tiny_lm, tmp_path, data, bare_trainer):
    """Fit a tiny model in a folder; returns editor and trainer."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("The capital of France is Paris.\n\nRome is a city in Italy by the sea.")

    def fit(folder, *callbacks, resume=False, seed=0, interval=2, data=data, size=1, lm=None, checkpoints=None):
        L.seed_everything(seed, verbose=False)
        editor = SequentialEditor(
            AlphaEdit(ridge=1.0, null_space_threshold=10.0),
            [1, 2],
            name="tiny",
            targets=TargetSettings(steps=3, learning_rate=0.5, clamp=4.0, weight_decay=0.0, anchor=True),
            statistics=StatisticsSettings(corpus=str(corpus), tokens=20, cache_dir=str(tmp_path / "cache")),
            evaluation=EvaluationSettings(perplexity_tokens=64),
            contexts=2,
        )
        editor.lm = lm or tiny_lm()
        trainer = bare_trainer(
            max_epochs=1,
            default_root_dir=tmp_path / folder,
            callbacks=[
                SparseProjection(),
                HypersphericalEnergy(),
                EnergyCorrelation(min_points=3),
                SpectrumRestraint(),
                checkpoints or RunCheckpoints(max_overhead=1.0),
                *callbacks,
            ],
            logger=MetricsFile(str(tmp_path / folder)),
            val_check_interval=interval,
            check_val_every_n_epoch=None,
        )
        path = newest_checkpoint(tmp_path / folder / "checkpoints") if resume else None
        trainer.fit(editor, EditLoader(data, size), ckpt_path=path)
        return editor, trainer

    return fit


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.weights, other.weights, strict=True))


CUTS = [
    ("on_train_batch_start", 2, 2),
    ("on_before_optimizer_step", 3, 1),
    ("on_train_batch_end", 3, 2),
    ("on_train_batch_end", 5, 3),
    ("on_validation_start", 4, 2),
    ("on_validation_epoch_end", 3, 1),
    ("on_train_batch_end", 6, 4),
    ("on_validation_epoch_end", 6, 2),
    ("on_train_end", 6, 3),
]


@pytest.mark.parametrize(("hook", "batch", "interval"), CUTS)
def test_a_run_cut_off_anywhere_ends_like_the_uninterrupted_one(fit, tmp_path, hook, batch, interval):
    whole, trainer = fit("whole", interval=interval)
    with pytest.raises(Cut):
        fit("cut", CutAt(hook, batch), interval=interval)
    resumed, again = fit("cut", resume=True, seed=99, interval=interval)
    assert same(whole, resumed)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")  # logged steps included, none twice, none missing
    assert (resumed.scores.before, resumed.scores.after) == (whole.scores.before, whole.scores.after)
    assert again.global_step == trainer.global_step == 6
    assert torch.equal(again.callback_metrics["energy/mean"], trainer.callback_metrics["energy/mean"])
    assert again.callbacks[2].series == trainer.callbacks[2].series
    assert not checkpoint_paths(tmp_path / "cut" / "checkpoints")  # a finished run needs none


def test_a_run_cut_off_twice_ends_like_the_uninterrupted_one(fit, tmp_path):
    whole, _ = fit("whole")
    for batch in (2, 3, 3, 5):
        with pytest.raises(Cut):
            fit("cut", CutAt("on_train_batch_end", batch), resume=True)
    assert same(whole, fit("cut", resume=True)[0])
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_random_states_go_on_where_they_were(fit, tmp_path):
    drawn = []

    class Draw(L.Callback):
        def on_train_batch_end(self, *_):
            import random

            import numpy as np

            drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))

    fit("whole", Draw())
    whole, drawn[:] = list(drawn), []
    with pytest.raises(Cut):
        fit("cut", Draw(), CutAt("on_train_batch_end", 4))
    del drawn[-1]  # of the batch that was lost
    fit("cut", Draw(), resume=True, seed=99)
    assert drawn == whole


def test_checkpoints_hold_what_changes_and_the_last_ones_are_kept(fit, tmp_path):
    with pytest.raises(Cut):
        fit("cut", CutAt("on_train_batch_end", 6), checkpoints=RunCheckpoints(max_overhead=1.0, keep=3))
    paths = checkpoint_paths(tmp_path / "cut" / "checkpoints")
    assert [path.name for path in paths] == [f"batch-{done:06d}.safetensors" for done in (3, 4, 5)]
    checkpoint = read_checkpoint(paths[-1])
    names = {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (1, 2)}
    assert set(checkpoint["state_dict"]) == names  # the frozen model is not in it
    assert checkpoint["sphere_pl"]["edits_seen"] == 5


def test_a_torn_checkpoint_gives_way_to_the_one_before(fit, tmp_path, caplog):
    whole, _ = fit("whole")
    with pytest.raises(Cut):
        fit("cut", CutAt("on_train_batch_end", 5))
    newest = checkpoint_paths(tmp_path / "cut" / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    resumed, _ = fit("cut", resume=True)
    assert f"{newest} is not a checkpoint" in caplog.text
    assert "the one before" in caplog.text
    assert same(whole, resumed)


def test_if_no_checkpoint_is_whole_nothing_is_begun(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "batch-000001.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match="None of the 1 checkpoints"):
        newest_checkpoint(folder)


def test_an_interval_and_a_budget_limit_how_often_is_saved(fit, tmp_path):
    seen = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            paths = checkpoint_paths(tmp_path / "run" / "checkpoints")
            seen.append(int(paths[-1].stem[-6:]) if paths else 0)

    fit("run", Look(), checkpoints=RunCheckpoints(every_n_batches=2, max_overhead=1.0))
    assert seen == [0, 0, 2, 2, 4, 4]
    seen.clear()
    fit("run", Look(), checkpoints=RunCheckpoints(max_overhead=1e-6))
    assert seen == [0, 1, 1, 1, 1, 1]  # the cost is not known before the first
    seen.clear()
    fit("run", Look(), checkpoints=RunCheckpoints(every_n_batches=0))
    assert seen == [0] * 6


@pytest.mark.parametrize("wrong", [{"every_n_batches": -1}, {"keep": 0}, {"max_overhead": 0.0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RunCheckpoints(**wrong)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_batch_and_saves(fit, tmp_path, signum, capsys):
    class Send(L.Callback):
        def on_before_optimizer_step(self, trainer, *_):
            if trainer.fit_loop.epoch_loop.batch_progress.total.ready == 3:
                signal.raise_signal(signum) if not self.sent else None
                self.sent = True

        sent = False

    whole, _ = fit("whole")
    before = signal.getsignal(signum)
    with pytest.raises(RunInterrupted):
        fit("cut", Send(), checkpoints=RunCheckpoints(every_n_batches=0))
    assert "A second signal drops" in capsys.readouterr().err
    assert signal.getsignal(signum) is before
    assert [path.stem for path in checkpoint_paths(tmp_path / "cut" / "checkpoints")] == ["batch-000003"]
    assert same(whole, fit("cut", resume=True)[0])
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_a_second_signal_drops_the_batch(fit, tmp_path):
    class SendTwice(L.Callback):
        def on_before_optimizer_step(self, trainer, *_):
            if trainer.fit_loop.epoch_loop.batch_progress.total.ready == 3:
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGTERM)

    whole, _ = fit("whole")
    with pytest.raises(RunInterrupted):
        fit("cut", SendTwice())
    assert checkpoint_paths(tmp_path / "cut" / "checkpoints")[-1].stem == "batch-000002"
    assert same(whole, fit("cut", resume=True)[0])


def test_a_signal_before_the_first_batch_ends_the_run_at_once(fit, monkeypatch):
    from sphere_pl.editing import preparation

    monkeypatch.setattr(preparation, "sample_contexts", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(RunInterrupted):
        fit("cut")


def test_other_data_are_refused_with_the_first_edit_that_differs(fit, tmp_path, data):
    with pytest.raises(Cut):
        fit("cut", CutAt("on_train_batch_end", 3))
    kept = rows(tmp_path / "cut")
    other = [*data[:4], data[4]._replace(target_new="Tokyo"), data[5]]
    with pytest.raises(UserError, match=r"1 of the 6 edits .* edit 5, now 'The capital of France is' -> 'Tokyo'"):
        fit("cut", resume=True, data=other)
    with pytest.raises(UserError, match=r"a run of 6 edits, but the data now give 5"):
        fit("cut", resume=True, data=data[:5])
    moved = [request._replace(source="elsewhere.json, line 3") for request in data]
    assert rows(tmp_path / "cut") == kept  # a refusal changes nothing
    fit("cut", resume=True, data=moved)


def test_another_model_is_refused(fit, tiny_lm):
    with pytest.raises(Cut):
        fit("cut", CutAt("on_train_batch_end", 3))
    with pytest.raises(UserError, match="another model"):
        fit("cut", resume=True, lm=tiny_lm(seed=1))


def test_other_settings_are_refused_by_name(fit):
    def checkpoints(strength):
        made = RunCheckpoints(max_overhead=1.0)
        made.settings = {"projection.strength": strength, "data.limit": "6"}
        return made

    with pytest.raises(Cut):
        fit("cut", CutAt("on_train_batch_end", 3), checkpoints=checkpoints("0.5"))
    with pytest.raises(UserError, match=r"projection.strength: 0.5 then, 0.8 now\)"):
        fit("cut", resume=True, checkpoints=checkpoints("0.8"))


def test_a_full_disk_stops_the_run_and_keeps_the_last_state(fit, tmp_path, monkeypatch):
    from sphere_pl.storage import checkpoint_file

    whole, _ = fit("whole")
    original, calls = checkpoint_file.save_file, []

    def full(tensors, path, **kwargs):
        calls.append(path)
        if len(calls) == 3:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        original(tensors, path, **kwargs)

    monkeypatch.setattr(checkpoint_file, "save_file", full)
    with pytest.raises(UserError, match="No space left"):
        fit("cut")
    folder = tmp_path / "cut" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["batch-000001.safetensors", "batch-000002.safetensors"]
    assert same(whole, fit("cut", resume=True)[0])


def test_what_a_killed_writer_left_is_removed(fit, tmp_path):
    with pytest.raises(Cut):
        fit("cut", CutAt("on_train_batch_end", 3))
    left = tmp_path / "cut" / "checkpoints" / ".batch-000003.safetensors.abc.part"
    left.write_bytes(b"half")
    with pytest.raises(Cut):
        fit("cut", CutAt("on_train_batch_end", 4), resume=True)
    assert not left.exists()


def test_a_checkpoint_of_something_else_is_refused(fit, tmp_path):
    path = tmp_path / "run" / "checkpoints" / "batch-000001.safetensors"
    write_checkpoint({"state_dict": {}, "pytorch-lightning_version": "2.6.1", "loops": {}, "callbacks": {}}, path)
    with pytest.raises(UserError, match="not written by an editing run"):
        fit("run", resume=True)


def test_saving_costs_little(fit, tmp_path):
    checkpoints = RunCheckpoints(max_overhead=1.0)
    began = time.monotonic()
    fit("run", checkpoints=checkpoints)
    assert 0 < checkpoints.seconds < time.monotonic() - began
