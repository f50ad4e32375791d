import csv

import lightning as L
import pytest
import torch

from sphere_pl.data.datamodule import EditLoader
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editor import SequentialEditor
from sphere_pl.evaluation.first_batch import FirstBatch
from sphere_pl.evaluation.outcomes import ask_targets
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.methods import FT, AlphaEdit
from sphere_pl.run.target_table import COLUMNS, TargetTable
from sphere_pl.trainers import callbacks_of

pytestmark = pytest.mark.filterwarnings("ignore:The corpus")


@pytest.fixture
def edit(tiny_lm, tmp_path, requests, bare_trainer):
    def edit(method, steps=40, stop_loss=1.0, restored=None, folder=None, callbacks=(), **validated):
        from sphere_pl.editing.moments import StatisticsSettings

        (tmp_path / "corpus.txt").write_text("Rome is a city in Italy by the sea. An apple is a fruit.")
        editor = SequentialEditor(
            method,
            [2],
            name="tiny",
            targets=TargetSettings(steps=steps, learning_rate=0.5, clamp=2.0, stop_loss=stop_loss, weight_decay=0.0),
            statistics=StatisticsSettings(str(tmp_path / "corpus.txt"), tokens=15, cache_dir=str(tmp_path)),
            evaluation=EvaluationSettings(perplexity_tokens=0),
            contexts=0,
        )
        editor.lm = tiny_lm()
        table = TargetTable(str(folder or tmp_path))
        if restored is not None:
            table.load_state_dict({"rows": restored})
        trainer = bare_trainer(max_epochs=1, callbacks=[table, *callbacks], **validated)
        trainer.fit(editor, EditLoader(requests, 2))
        return table, trainer

    return edit


def test_every_request_has_a_row_that_says_how_its_target_was_found(edit, tmp_path, requests):
    table, _ = edit(AlphaEdit(ridge=1.0, null_space_threshold=10.0))
    with (tmp_path / "targets.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    assert [row["case_id"] for row in rows] == [request.case_id for request in requests]
    assert [row["edit"] for row in rows] == ["1", "2", "3", "4"]
    for row in rows:
        assert (row["converged"] == "yes") == (float(row["loss"]) < 1.0)
        assert 0 < float(row["probability"]) < 1
    assert table.summary()["unconverged"] == sum(row["converged"] == "no" for row in rows)
    assert table.summary()["clamped"] == sum(row["clamped"] == "yes" for row in rows)


def test_requests_that_did_not_converge_are_counted(edit):
    table, trainer = edit(AlphaEdit(ridge=1.0, null_space_threshold=10.0), steps=1)
    assert table.summary()["unconverged"] == 4
    assert trainer.callback_metrics["target/unconverged"] == torch.tensor(2.0)  # of the last batch


def test_methods_without_target_values_have_no_table(edit, tmp_path):
    edit(FT(learning_rate=0.01, epochs=1))
    assert not (tmp_path / "targets.csv").exists()


def test_a_batch_adds_to_the_file_and_leaves_earlier_rows_alone(edit, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        "sphere_pl.run.target_table.write_text", lambda path, text: (written.append(text), path.write_text(text))
    )
    edit(AlphaEdit(ridge=1.0, null_space_threshold=10.0))
    assert len(written) == 1
    assert (tmp_path / "targets.csv").read_text().startswith(written[0])


def test_a_run_that_goes_on_drops_rows_behind_its_checkpoint(edit, tmp_path):
    table, _ = edit(AlphaEdit(ridge=1.0, null_space_threshold=10.0))
    first_two = table.state_dict()["rows"][:2]
    with (tmp_path / "targets.csv").open("a") as file:
        file.write("3,half a ro")
    edit(AlphaEdit(ridge=1.0, null_space_threshold=10.0), restored=first_two)
    with (tmp_path / "targets.csv").open() as file:
        assert [row["edit"] for row in csv.DictReader(file)] == ["1", "2", "1", "2", "3", "4"]


@pytest.fixture
def asked(monkeypatch):
    """How many requests the table, or the look at the first batch, has asked for at a time."""
    found = []
    for module in ("run_scores", "first_batch"):
        name = f"sphere_pl.evaluation.{module}.ask_targets"
        monkeypatch.setattr(name, lambda lm, requests: found.append(len(requests)) or ask_targets(lm, requests))
    return found


def numbers(folder):
    with (folder / "targets.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("interval", [1, 2])
def test_the_model_is_asked_once_where_a_validation_asks_it(edit, tmp_path, asked, monkeypatch, interval):
    """Of two batches the first is asked by the table, or by the look after it, and the second by its validation."""
    (tmp_path / "other").mkdir()
    edit(AlphaEdit(ridge=1.0, null_space_threshold=10.0), val_check_interval=interval, folder=tmp_path / "other")
    assert asked == [2]
    monkeypatch.setattr("sphere_pl.run.target_table.validation_follows", lambda trainer, batch_idx: False)
    edit(AlphaEdit(ridge=1.0, null_space_threshold=10.0), val_check_interval=interval)
    assert asked == [2] * 3
    for row, right in zip(numbers(tmp_path / "other"), numbers(tmp_path), strict=True):
        found, wanted = float(row.pop("edited_probability")), float(right.pop("edited_probability"))
        assert found == pytest.approx(wanted, rel=1e-4)
        assert row == right


def test_a_batch_whose_validation_does_not_come_is_asked_before_the_next_one(edit, tmp_path, monkeypatch):
    method, late = AlphaEdit(ridge=1.0, null_space_threshold=10.0), {"val_check_interval": 2}
    edit(method, **late)
    expected = (tmp_path / "targets.csv").read_text()
    monkeypatch.setattr("sphere_pl.run.target_table.validation_follows", lambda trainer, batch_idx: True)
    monkeypatch.setattr("sphere_pl.editor.look", lambda *_: FirstBatch(2, 2, 0, 1.0, None))
    edit(method, **late)
    assert (tmp_path / "targets.csv").read_text() == expected


def test_a_validation_on_other_weights_is_not_taken_for_the_edited_model(edit, tmp_path):
    class Swap(L.Callback):
        def on_validation_start(self, trainer, pl_module):
            self.kept = [weight.detach().clone() for weight in pl_module.weights]
            with torch.no_grad():
                for weight in pl_module.weights:
                    weight.zero_()

        def on_validation_epoch_end(self, trainer, pl_module):
            with torch.no_grad():
                for weight, kept in zip(pl_module.weights, self.kept, strict=True):
                    weight.copy_(kept)

    edit(AlphaEdit(ridge=1.0, null_space_threshold=10.0), val_check_interval=2)
    expected = [row["edited_probability"] for row in numbers(tmp_path)]
    edit(AlphaEdit(ridge=1.0, null_space_threshold=10.0), val_check_interval=1, callbacks=[Swap()])
    found = [row["edited_probability"] for row in numbers(tmp_path)]
    assert [float(each) for each in found] == pytest.approx([float(each) for each in expected], rel=1e-4)


def test_a_checkpoint_between_a_batch_and_its_validation_holds_whole_rows(edit, tmp_path):
    states = []

    class Save(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            (table,) = callbacks_of(trainer, TargetTable)
            states.append(table.state_dict()["rows"].clone())

    table, _ = edit(AlphaEdit(ridge=1.0, null_space_threshold=10.0), val_check_interval=1, callbacks=[Save()])
    assert [len(rows) for rows in states] == [2, 4]
    assert all(rows.isfinite().all() for rows in states)
    assert torch.equal(states[-1], table.state_dict()["rows"])
