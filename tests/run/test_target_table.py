import csv

import pytest
import torch

from sphere_pl.data.datamodule import EditLoader
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editor import SequentialEditor
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.methods import FT, AlphaEdit
from sphere_pl.run.target_table import COLUMNS, TargetTable

pytestmark = pytest.mark.filterwarnings("ignore:The corpus")


@pytest.fixture
def edit(tiny_lm, tmp_path, requests, bare_trainer):
    def edit(method, steps=40, stop_loss=1.0, restored=None):
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
        table = TargetTable(str(tmp_path))
        if restored is not None:
            table.load_state_dict({"rows": restored})
        trainer = bare_trainer(max_epochs=1, callbacks=[table])
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
