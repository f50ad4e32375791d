"""The configuration files of methods, callbacks, models and experiments: each does what its name says."""

import json
import sys

import pytest
import yaml

from sphere_pl.commands import main
from sphere_pl.configs import config_folder

ONE_LAYER = {"rome", "ft", "ft_l", "locft_bf"}
WITHOUT_TARGETS = {"method/ft", "method/ft_l", "method/locft_bf", "method/ultraedit",
                   "experiment/table1_ft_counterfact"}  # fmt: skip
NAMES = {
    "alphaedit": "AlphaEdit",
    "memit": "MEMIT",
    "memit_seq": "MEMIT-seq",
    "rome": "ROME",
    "emmet": "EMMET",
    "ft": "FT",
    "ft_l": "FT-L",
    "locft_bf": "LocFT-BF",
    "ultraedit": "UltraEdit",
}


@pytest.fixture
def fit(monkeypatch, tmp_path, model_folder):
    """Run a tiny fit with further arguments; returns its results."""
    rewrite = {
        "prompt": "The capital of {} is",
        "subject": "France",
        "target_new": {"str": "Berlin"},
        "target_true": {"str": "Paris"},
    }
    records = [{"case_id": i, "requested_rewrite": rewrite, "paraphrase_prompts": []} for i in range(2)]
    (tmp_path / "facts.json").write_text(json.dumps(records))
    (tmp_path / "corpus.txt").write_text("The capital of France is Paris. Rome is a city in Italy by the sea.")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")

    def run(*args, layers="[1,2]"):
        arguments = [
            "fit", *args, "--data.name=counterfact", "--data.path=facts.json", "--data.batch_size=1", "--quiet=true",
            f"--model.name={model_folder}", f"--model.layers={layers}", "--model.dtype=float32",
            "--model.contexts=2", "--model.evaluation.perplexity_tokens=32",
            "--model.statistics.corpus=corpus.txt", "--model.statistics.tokens=10", "--run_dir=run",
            f"--model.statistics.cache_dir={tmp_path / 'cache'}", "--trainer.accelerator=cpu",
        ]  # fmt: skip
        if not WITHOUT_TARGETS & set(args):
            arguments.append("--model.targets.steps=3")
        monkeypatch.setattr(sys, "argv", ["sphere_pl", *arguments])
        main()
        return json.loads((tmp_path / "run" / "results.json").read_text())

    return run


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", NAMES)
def test_every_methods_file_runs_plain(fit, method):
    args = ["--model.method.init_args.null_space_threshold=10.0"] if method == "alphaedit" else []
    results = fit("--config", f"method/{method}", *args, layers="[2]" if method in ONE_LAYER else "[1,2]")
    assert results["method"] == NAMES[method]
    assert results["edits"] == 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["callbacks/rect", "callbacks/sphere"], "MEMIT + RECT + SPHERE"),
        (["callbacks/sphere", "callbacks/rect"], "MEMIT + RECT + SPHERE"),
        (["callbacks/prune"], "MEMIT + PRUNE"),
        (["callbacks/two_sided"], "MEMIT + SPHERE"),
        (["callbacks/after_loop"], "MEMIT + SPHERE"),
    ],
)
def test_every_callbacks_file_composes_with_a_method(fit, names, shown):
    configs = [argument for name in ["method/memit", *names] for argument in ("--config", name)]
    assert fit(*configs)["method"] == shown


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", ["sphere", "alphaedit", "memit", "rect", "prune", "ft"])
def test_every_row_of_table_1_runs(fit, row):
    args = ["--model.method.init_args.null_space_threshold=10.0"] if row in {"sphere", "alphaedit"} else []
    layers = "[2]" if row == "ft" else "[1,2]"
    results = fit("--config", f"experiment/table1_{row}_counterfact", *args, layers=layers)
    shown = {"sphere": "AlphaEdit + SPHERE", "alphaedit": "AlphaEdit", "memit": "MEMIT", "rect": "MEMIT + RECT"}
    assert results["method"] == {**shown, "prune": "MEMIT + PRUNE", "ft": "FT"}[row]


@pytest.mark.filterwarnings("ignore")
def test_the_curve_of_rome_runs(fit):
    results = fit("--config", "experiment/rome_zsre", layers="[2]")
    assert (results["method"], results["edits"]) == ("ROME", 2)


def test_the_rows_of_table_1_differ_in_their_data_and_method_alone():
    files = sorted((config_folder() / "experiment").glob("table1_*_counterfact.yaml"))
    assert len(files) == 6
    for path in files:
        one = yaml.safe_load(path.read_text())
        other = yaml.safe_load(path.with_name(path.name.replace("counterfact", "zsre")).read_text())
        assert one["data"].pop("name") != other["data"].pop("name")
        assert one["data"].pop("path") != other["data"].pop("path")
        assert one == other
        model = yaml.safe_load((config_folder() / "model" / "llama3_8b.yaml").read_text())["model"]
        shared = set(model) & set(one["model"]) - ({"layers", "targets"} if "_ft_" in path.name else set())
        assert {key: one["model"][key] for key in shared} == {key: model[key] for key in shared}
