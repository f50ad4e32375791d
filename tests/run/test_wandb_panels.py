"""A wandb run on this machine alone, read back with wandb's own tool."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb as wandb_package

from sphere_pl.report.reading import read_run
from sphere_pl.run.loggers import WandbSettings, run_loggers
from sphere_pl.run.wandb_panels import WandbPanels, collapse_summary

EFFICACY = (0.95, 0.9, 0.7, 0.55, 0.3)
RESULTS = {
    "failed": [{"case_id": 3, "subject": "Oslo", "prompt": "Oslo lies in", "wanted": "Japan", "given": "Norway"}],
    "cases": [{"prompt": "Rome is", "before": "old", "after": "new", "wanted": "new"}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a run over 50 edits has left that fell below 60 % at 40."""
    path = tmp_path_factory.mktemp("run")
    rows = [f"{i},{10 * i + 10},{e},{50 + i},{0.001 * i**2}" for i, e in enumerate(EFFICACY)]
    (path / "metrics.csv").write_text("step,edits,val/efficacy,val/perplexity,energy/change\n" + "\n".join(rows))
    (path / "results.json").write_text(json.dumps(RESULTS))
    return path


@pytest.fixture(scope="module")
def sent(folder):
    """What a run sent to wandb: the records of its log by kind, and the folder of its files."""
    wandb_package.teardown()  # which reads the environment once, maybe for another test
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        settings = WandbSettings(tags=["mine"])
        loggers = run_loggers(str(folder), settings, {"seed": 1}, ["MEMIT + SPHERE", "tiny", "facts"])
    trainer = SimpleNamespace(loggers=loggers, is_global_zero=True, sanity_checking=False)
    panels = WandbPanels(str(folder), every=2)
    wandb = loggers[1]
    wandb.log_metrics({"edits": 10.0, "energy/change": 0.1}, step=0)
    for step, efficacy in enumerate(EFFICACY):
        wandb.log_metrics(
            {"edits": 10.0 * step + 10, "val/efficacy": efficacy, "val/perplexity": 50.0 + step}, step=step
        )
        wandb.log_metrics({"spearman/val/efficacy": -0.5}, step=step + 1)
        panels.on_validation_end(trainer, None)
    panels.on_fit_end(trainer, None)
    wandb.experiment.finish()
    (log,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    offered = subprocess.run([*inspect[:-1], "--help"], capture_output=True, text=True, check=True).stdout
    if "--json" not in offered:
        pytest.skip("this release of wandb browses a log on the screen and does not print it")
    done = subprocess.run([*inspect, log], capture_output=True, text=True, check=True)
    found = {}
    for record in map(json.loads, done.stdout.splitlines()):
        found.setdefault(record["type"], []).append(record.get(record["type"]))
    done = subprocess.run([*inspect, "--summary", log], capture_output=True, text=True, check=True)
    return SimpleNamespace(records=found, summary=json.loads(done.stdout)["summary"], files=log.parent)


def test_every_curve_is_drawn_over_the_edits(sent):
    defined = {each["name"]: each for each in sent.records["metric"]}
    assert {name for name, each in defined.items() if each.get("step_metric") != "edits"} == {"edits"}
    rows = [row["item"] for row in sent.records["history"]]
    assert all("edits" in row for row in rows)
    spearman = [row["edits"] for row in rows if "spearman/val/efficacy" in row]
    assert spearman == [10, 20, 30, 40, 50]


def test_the_summary_holds_last_and_best_values_and_those_at_collapse(sent):
    assert sent.summary["val/efficacy"] == {"last": 0.3, "max": 0.95}
    assert sent.summary["val/perplexity"] == {"last": 54, "min": 50}
    assert sent.summary["collapse/edits"] == 40
    assert sent.summary["collapse/efficacy"] == 0.55
    assert sent.summary["collapse/energy/change"] == pytest.approx(0.009)


def test_method_model_and_data_are_group_and_tags(sent):
    (run,) = sent.records["run"][:1]
    assert run["run_group"] == "MEMIT + SPHERE, tiny, facts"
    assert run["tags"] == ["MEMIT + SPHERE", "tiny", "facts", "mine"]


def test_figures_come_now_and_then_and_tables_at_the_end(sent):
    rows = [row["item"] for row in sent.records["history"]]
    kinds = {n.removesuffix("._type"): kind for row in rows for n, kind in row.items() if n.endswith("._type")}
    assert kinds == {
        "figures/trends": "plotly-file",
        "figures/changes/efficacy": "plotly-file",
        "figures/changes/perplexity": "plotly-file",
        "tables/failed": "table-file",
        "tables/cases": "table-file",
    }
    assert sum("figures/trends.path" in row for row in rows) == 3
    path = next(row["tables/failed.path"] for row in rows if "tables/failed.path" in row)
    table = json.loads((sent.files / "files" / path).read_text())
    assert table["columns"] == ["case_id", "subject", "prompt", "wanted", "given"]
    assert table["data"] == [["3", "Oslo", "Oslo lies in", "Japan", "Norway"]]
    changes = "figures/changes/efficacy.path"
    path = next(row[changes] for row in rows if changes in row)
    names = [trace["name"] for trace in json.loads((sent.files / "files" / path).read_text())["data"]]
    assert names == ["efficacy", "95 % ellipse", "regression line"]


def test_all_of_it_is_small(sent):
    assert sum(path.stat().st_size for path in sent.files.rglob("*") if path.is_file()) < 200_000


def test_a_run_that_held_has_no_point_of_collapse(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,edits,val/efficacy\n0,10,0.9\n1,20,0.6\n")
    assert collapse_summary(read_run(tmp_path)) == {}


def test_without_wandb_nothing_is_done(tmp_path):
    trainer = SimpleNamespace(loggers=[], is_global_zero=True, sanity_checking=False)
    panels = WandbPanels(str(Path(tmp_path) / "nowhere"), every=1)
    panels.on_validation_end(trainer, None)
    panels.on_fit_end(trainer, None)
