import json
import subprocess
from types import SimpleNamespace

import pytest

from benchmarks import cells
from benchmarks.cells import STOPPED, Cell, collect, columns, dump, finished, left_over, read_run, run_cell
from sphere_pl.errors import UserError
from sphere_pl.run.lock import RunLock

METRICS = """step,edits,energy/mean,time/seconds,val/efficacy,wandb,spearman/val/efficacy
0,10,0.5,2.25,,,
0,10,,,0.75,,
1,20,0.25,2.5,,,
1,,,,,,0.5
1,20,,,0.123456789,,
"""


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "run"
    made.mkdir()
    (made / "metrics.csv").write_text(METRICS)
    (made / "results.json").write_text(json.dumps({"edits": 20, "after": {"efficacy": 0.5}, "seed": 0}))
    return made


def test_a_run_becomes_two_tables_over_edits(folder):
    found = read_run(folder)
    assert found["batches"] == {"edits": [10, 20], "energy/mean": [0.5, 0.25], "time/seconds": [2.25, 2.5]}
    assert found["validations"] == {"edits": [10, 20], "val/efficacy": [0.75, 0.12346]}
    assert found["after"] == {"efficacy": 0.5}
    assert "seed" not in found


def test_a_run_that_broke_off_keeps_its_series(folder):
    (folder / "results.json").unlink()
    found = read_run(folder)
    assert "after" not in found
    assert found["validations"]["edits"] == [10, 20]


def test_what_is_no_number_is_null():
    rows = [{"edits": "1", "val/a": "nan"}, {"edits": "2", "val/a": "0.5"}]
    assert columns(rows) == {"edits": [1, 2], "val/a": [None, 0.5]}


def test_the_file_reads_back_as_it_was():
    found = {"name": "x", "batches": {"edits": [1, 2], "val/a": [None, 0.5]}, "validations": {}, "failed": None}
    assert json.loads(dump(found)) == found


def fake_process(code, message):
    def run(command, **_):
        return SimpleNamespace(returncode=code, stderr=message, stdout="")

    return run


def test_a_run_that_ends_with_a_message_is_kept_as_a_finding(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", fake_process(2, "WARNING: x\nerror: the model has collapsed\n"))
    run_cell(Cell("one", ("--a=1",), 20), folder, tmp_path / "one.json", ["--data.path=/secret/place"])
    text = (tmp_path / "one.json").read_text()
    assert json.loads(text)["failed"] == "error: the model has collapsed"
    assert "secret" not in text


def test_a_run_that_was_cut_off_goes_on_and_a_finished_one_without_its_json_is_run_again(folder, tmp_path, monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        return SimpleNamespace(returncode=0, stderr="", stdout="")

    monkeypatch.setattr(subprocess, "run", run)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "batch-000003.safetensors").touch()
    run_cell(Cell("done", (), 20), folder, tmp_path / "done.json", [])
    (folder / "results.json").unlink()
    run_cell(Cell("cut", (), 20), folder, tmp_path / "cut.json", [])
    assert [command[-1] for command in commands] == ["--overwrite", "--ckpt_path=last"]


def test_a_run_that_crashes_or_never_starts_is_an_error(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", fake_process(1, "Traceback: boom"))
    with pytest.raises(RuntimeError, match="boom"):
        run_cell(Cell("one", (), 20), folder, tmp_path / "one.json", [])
    (folder / "metrics.csv").unlink()
    monkeypatch.setattr(subprocess, "run", fake_process(2, "error: no such file"))
    with pytest.raises(RuntimeError, match="did not start: error: no such file"):
        run_cell(Cell("one", (), 20), folder, tmp_path / "one.json", [])


def test_a_folder_in_which_another_process_writes_is_no_finding(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", fake_process(2, "error: Another process is editing"))
    with RunLock(folder), pytest.raises(UserError, match="Another process"):
        run_cell(Cell("one", (), 20), folder, tmp_path / "one.json", [])
    assert not (tmp_path / "one.json").exists()


def test_a_finished_cell_is_not_run_again(folder, tmp_path, monkeypatch):
    (tmp_path / "one.json").write_text("{}")
    monkeypatch.setattr(subprocess, "run", fake_process(1, "must not run"))
    run_cell(Cell("one", (), 20), folder, tmp_path / "one.json", [])


def test_the_estimate_counts_what_is_left_at_measured_cost(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cells, "STARTING", 35.0)
    (tmp_path / "done.json").write_text("{}")
    table = [Cell("done", (), 100, 9.0), Cell("known", (), 100, 9.0), Cell("new", (), 10, 2.0)]
    left = left_over(table, lambda cell: tmp_path / f"{cell.name}.json", 2, {"known": 1.5})
    assert [cell.name for cell in left] == ["known", "new"]
    assert capsys.readouterr().out == "1 of 3 cells are finished; the rest takes about 2 min.\n"


def test_a_stopped_run_is_kept_and_still_counts_as_not_finished(folder, tmp_path):
    (folder / "results.json").unlink()
    path, one = tmp_path / "one.json", Cell("one", ("--a=1",), 30)
    collect(one, tmp_path / "no such run", path)
    assert not path.exists()
    collect(one, folder, path)
    assert not finished(path)
    assert json.loads(path.read_text())["failed"] == STOPPED
    assert json.loads(path.read_text())["validations"]["edits"] == [10, 20]


def test_a_finished_cell_is_not_overwritten_by_collecting(folder, tmp_path):
    path = tmp_path / "one.json"
    path.write_text('{"failed": null}')
    assert finished(path)
    collect(Cell("one", (), 30), folder, path)
    assert path.read_text() == '{"failed": null}'
