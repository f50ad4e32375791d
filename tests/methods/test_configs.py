"""The configuration files of methods, callbacks, models and experiments: each does what its name says."""

import json
import sys

import pytest

from sphere_pl.commands import main

ONE_LAYER = {"rome", "ft", "ft_l", "locft_bf", "scr"}
WITHOUT_TARGETS = {"method/ft", "method/ft_l", "method/locft_bf", "method/ultraedit", "method/scr"}
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
    "scr": "SCR, unconfirmed",
    "eamet": "MEMIT",
    "evoedit": "EvoEdit",
    "rlsedit": "RLSEdit",
    "suit": "MEMIT-seq, SUIT keys",
}
# The rows of Table 1: method, callbacks, and what the run is called.
TABLE_1 = {
    "sphere": ("alphaedit", ["sphere"], "AlphaEdit + SPHERE"),
    "alphaedit": ("alphaedit", [], "AlphaEdit"),
    "memit": ("memit", [], "MEMIT"),
    "rect": ("memit", ["rect"], "MEMIT + RECT"),
    "prune": ("memit", ["prune"], "MEMIT + PRUNE"),
    "ft": ("ft", [], "FT"),
}


def table_1(row, model="llama3_8b", data="counterfact", *more):
    """The arguments of a row."""
    method, callbacks, _ = TABLE_1[row]
    groups = [f"model/{model}", f"method/{method}", f"data/{data}", *(f"callbacks/{name}" for name in callbacks)]
    return composed("experiment/table1", *groups, *more)


def composed(*groups):
    return [argument for group in groups for argument in ("--config", group)]


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
    own = {"alphaedit": "null_space_threshold=10.0", "scr": "confirm=false"}  # the tiny model's context is tiny
    args = [f"--model.method.init_args.{own[method]}"] if method in own else []
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
        (["callbacks/crispedit"], "MEMIT + CrispEdit"),
        (["callbacks/two_sided"], "MEMIT + SPHERE"),
        (["callbacks/after_loop"], "MEMIT + SPHERE"),
    ],
)
def test_every_callbacks_file_composes_with_a_method(fit, names, shown):
    configs = [argument for name in ["method/memit", *names] for argument in ("--config", name)]
    assert fit(*configs)["method"] == shown


@pytest.mark.filterwarnings("ignore")
def test_what_is_recommended_runs_without_a_projection(fit):
    results = fit("--config", "recommended", "--model.method.init_args.null_space_threshold=10.0")
    assert (results["method"], results["transforms"]) == ("AlphaEdit", [])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", TABLE_1)
def test_every_row_of_table_1_runs(fit, row):
    args = ["--model.method.init_args.null_space_threshold=10.0"] if row in {"sphere", "alphaedit"} else []
    results = fit(*table_1(row), *args, layers="[2]" if row == "ft" else "[1,2]")
    assert results["method"] == TABLE_1[row][2]


@pytest.mark.filterwarnings("ignore")
def test_the_curve_of_rome_runs(fit):
    groups = ("experiment/table1", "model/llama3_8b", "method/rome", "data/zsre", "experiment/rome_zsre")
    results = fit(*composed(*groups), layers="[2]")
    assert (results["method"], results["edits"]) == ("ROME", 2)


# App. D.4 and the authors' hparams. FT has no targets; its layer is 21 of LLaMA3-8B and 27 of Qwen2.5-7B.
MODELS = {
    "llama3_8b": {
        "name": "meta-llama/Meta-Llama-3-8B-Instruct",
        "targets": {"learning_rate": 0.1, "clamp": 0.75, "weight_decay": 0.5},
        "limit": 15000,
        "ft_layer": 21,
    },
    "qwen2_5_7b": {
        "name": "Qwen/Qwen2.5-7B-Instruct",
        "targets": {"learning_rate": 0.5, "clamp": 4.0, "weight_decay": 0.001},
        "limit": 5000,
        "ft_layer": 27,
    },
}
ALPHAEDIT = {"class_path": "sphere_pl.methods.AlphaEdit", "ridge": 10.0, "null_space_threshold": 0.02}
MEMIT = {"class_path": "sphere_pl.methods.MEMIT", "second_moment_weight": 15000.0, "remember_past": False}
FT = {"class_path": "sphere_pl.methods.FT", "learning_rate": 0.0005, "epochs": 25, "batch_size": 64,
      "norm_constraint": None}  # fmt: skip
METHODS = {"alphaedit": ALPHAEDIT, "memit": MEMIT, "ft": FT}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("row", TABLE_1)
def test_a_row_of_table_1_has_the_papers_constants(parsed, row, name):
    config, wanted = parsed(*table_1(row, name)), MODELS[name]
    model, method = config["model"], TABLE_1[row][0]
    assert {key: model[key] for key in ("name", "dtype", "contexts", "context_length", "layers")} == {
        "name": wanted["name"],
        "dtype": "float32",
        "contexts": 5,
        "context_length": 10,
        "layers": [wanted["ft_layer"]] if method == "ft" else [4, 5, 6, 7, 8],
    }
    targets = {"steps": 25, **wanted["targets"], "kl_weight": 0.0625, "stop_loss": 0.05, "anchor": False}
    assert {key: model["targets"][key] for key in targets} == targets
    chosen = {"class_path": model["method"]["class_path"], **model["method"]["init_args"]}
    assert {key: chosen[key] for key in METHODS[method]} == METHODS[method]
    assert (config["data"]["limit"], config["data"]["batch_size"]) == (wanted["limit"], 100)
    assert config["trainer"]["val_check_interval"] == 10
    assert config["projection"]["cumulative_ratio"] == 0.5
    assert config["projection"]["strength"] == (0.5 if row == "sphere" else 0.0)


@pytest.mark.parametrize(
    ("row", "callback"),
    [
        ("rect", ("sphere_callbacks.RelativeMask", "keep", 0.4)),
        ("prune", ("sphere_callbacks.SpectrumRestraint", "project_strength", 0.0)),
    ],
)
def test_rect_and_prune_are_callbacks_of_memit(parsed, row, callback):
    (found,) = parsed(*table_1(row))["trainer"]["callbacks"]
    class_path, name, value = callback
    assert (found["class_path"], found["init_args"][name]) == (class_path, value)


@pytest.mark.parametrize("data", ["counterfact", "zsre"])
def test_the_rows_of_table_1_differ_in_their_data_alone(parsed, data):
    path = {"counterfact": "multi_counterfact.json", "zsre": "zsre_mend_eval.json"}[data]
    config = parsed(*table_1("sphere", "llama3_8b", data))
    assert (config["data"].pop("name"), config["data"].pop("path")) == (data, path)
    other = parsed(*table_1("sphere", "llama3_8b", "facts"))
    assert [other["data"].pop(name) for name in ("name", "path")] == ["facts", None]
    assert config == other


def test_the_experiments_stand_on_top_of_table_1(parsed):
    figures_2_and_3 = parsed(*table_1("alphaedit", "llama3_8b", "zsre", "experiment/energy_correlation"))
    assert (figures_2_and_3["data"]["limit"], figures_2_and_3["trainer"]["val_check_interval"]) == (5000, 1)
    figure_7 = parsed(*table_1("memit", "llama3_8b", "counterfact", "experiment/plug_and_play"))
    assert (figure_7["data"]["limit"], figure_7["projection"]["strength"]) == (3000, 0.8)


def test_the_curve_of_rome_has_its_own_constants(parsed):
    groups = ("experiment/table1", "model/llama3_8b", "method/rome", "data/zsre", "experiment/rome_zsre")
    config = parsed(*composed(*groups))
    model = config["model"]
    assert (model["layers"], model["contexts"], model["dtype"]) == ([5], 20, "float32")
    assert model["method"]["init_args"]["whiten"] is False
    targets = {"steps": 25, "learning_rate": 0.5, "clamp": 4.0, "weight_decay": 0.001, "kl_weight": 0.0625}
    assert {key: model["targets"][key] for key in targets} == targets
    assert (config["data"]["limit"], config["data"]["batch_size"]) == (5000, 1)
    assert config["energy"]["every_n_batches"] == config["trainer"]["val_check_interval"] == 100


@pytest.mark.parametrize(
    ("model", "method", "layers", "constants"),
    [
        ("gpt2_xl", "memit", [13, 14, 15, 16, 17], {"second_moment_weight": 20000.0, "remember_past": False}),
        ("gpt2_xl", "memit_seq", [13, 14, 15, 16, 17], {"second_moment_weight": 20000.0, "remember_past": True}),
        ("gptj_6b", "memit", [3, 4, 5, 6, 7, 8], {"second_moment_weight": 15000.0}),
        ("gpt2_xl", "rome", [17], {"whiten": True}),
        ("gptj_6b", "rome", [5], {"whiten": True}),
        ("qwen2_5_7b", "rome", [5], {"whiten": False}),
        ("gpt2_xl", "ft", [1], {"norm_constraint": None}),
        ("gptj_6b", "ft", [21], {"norm_constraint": None}),
        ("gptj_6b", "ft_l", [0], {"norm_constraint": 0.00005, "epochs": 25}),
        ("llama3_8b", "locft_bf", [22], {"end_of_text": True}),
        ("qwen2_5_7b", "locft_bf", [6], {"end_of_text": True}),
    ],
)
def test_constants_of_a_method_in_a_model_come_with_the_two(parsed, model, method, layers, constants):
    config = parsed(*composed(f"method/{method}", f"model/{model}"))["model"]
    assert config["layers"] == layers
    assert {key: config["method"]["init_args"][key] for key in constants} == constants


def test_romes_targets_in_gpt_are_its_own(parsed):
    targets = parsed(*composed("model/gpt2_xl", "method/rome"))["model"]["targets"]
    wanted = {"steps": 20, "learning_rate": 0.5, "clamp": 4.0, "weight_decay": 0.5}
    assert {key: targets[key] for key in wanted} == wanted
