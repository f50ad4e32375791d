import csv

import pytest

from sphere_pl.run.loggers import MetricsFile, WandbSettings, run_loggers


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_every_call_is_a_row_and_new_names_are_new_columns(tmp_path):
    logger = MetricsFile(str(tmp_path))
    logger.log_metrics({"a": 1.0}, step=0)
    logger.log_metrics({"b": 2.0, "a": 3.0}, step=1)
    assert rows(tmp_path / "metrics.csv") == [
        {"step": "0", "a": "1.0", "b": ""},
        {"step": "1", "a": "3.0", "b": "2.0"},
    ]


def test_a_resumed_run_goes_on_in_the_same_file(tmp_path):
    MetricsFile(str(tmp_path)).log_metrics({"a": 1.0}, step=0)
    MetricsFile(str(tmp_path)).log_metrics({"a": 2.0}, step=1)
    assert [row["a"] for row in rows(tmp_path / "metrics.csv")] == ["1.0", "2.0"]


def test_without_an_account_wandb_runs_offline_and_asks_nothing(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    _, logger = run_loggers(str(tmp_path / "run"), WandbSettings(), {"a": 1})
    assert logger.experiment.settings.mode == "offline"
    logger.log_metrics({"edits": 1.0, "x": 2.0})
    logger.experiment.finish()
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


@pytest.mark.parametrize("mode", ["disabled"])
def test_wandb_can_be_turned_off(tmp_path, monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    assert [type(logger) for logger in run_loggers(str(tmp_path), WandbSettings(), {})] == [MetricsFile]


def test_a_rewound_file_forgets_the_rows_behind(tmp_path):
    logger = MetricsFile(str(tmp_path))
    for step in range(4):
        logger.log_metrics({"a": float(step)}, step=step)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("4,torn")  # by a kill
    again = MetricsFile(str(tmp_path))
    again.rewind(2)
    again.log_metrics({"a": 9.0, "b": 1.0}, step=2)
    assert [(row["step"], row["a"]) for row in rows(tmp_path / "metrics.csv")] == [
        ("0", "0.0"),
        ("1", "1.0"),
        ("2", "9.0"),
    ]
    assert again.rows == 3


@pytest.mark.parametrize(("resumed", "expected"), [(True, "abc123"), (False, None)])
def test_a_resumed_online_run_is_taken_up_again(tmp_path, monkeypatch, resumed, expected):
    import wandb

    given = []

    def init(**settings):
        given.append(settings)
        raise wandb.errors.CommError("no network here")

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    (tmp_path / "wandb" / "run-20260101_000000-abc123").mkdir(parents=True)
    assert [type(logger) for logger in run_loggers(str(tmp_path), WandbSettings(), {}, resumed=resumed)] == [
        MetricsFile
    ]
    online, offline = given
    assert (online["id"], online["mode"]) == (expected, "online")
    assert (offline["id"], offline["resume"], offline["mode"]) == (None, None, "offline")
