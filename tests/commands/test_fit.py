"""The command line: configuration, messages, and a whole run on a tiny model in a folder."""

import csv
import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from sphere_callbacks.functional import restrain_spectrum, spectral_norm
from sphere_pl.commands.configs import find_config, group_files, resolve_group_files
from sphere_pl.errors import UserError
from sphere_pl.history.saved import SavedRun
from sphere_pl.model.known import config_folder
from sphere_pl.run.results import OWN

CONFIGS = sorted(path.relative_to(config_folder()) for path in config_folder().rglob("*.yaml"))


@pytest.fixture
def cli(monkeypatch, tmp_path, command_line):
    """The command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return command_line


@pytest.fixture
def facts(tmp_path):
    def record(i, prompt, subject, new, true):
        return {
            "case_id": i,
            "requested_rewrite": {
                "prompt": prompt,
                "subject": subject,
                "target_new": {"str": new},
                "target_true": {"str": true},
                "relation_id": "P1",
            },
            "paraphrase_prompts": [f"So {prompt.replace('{}', subject)}"],
            "neighborhood_prompts": ["Berlin is a city in"],
        }

    records = [
        record(0, "The capital of {} is", "France", "Berlin", "Paris"),
        record(1, "{} is a city in", "Rome", "Norway", "Italy"),
        record(2, "The mother tongue of {} is", "Anna Karlsson", "Italy", "Swedish"),
    ]
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(records))
    return path


def tiny_run(model_folder, facts, tmp_path):
    (tmp_path / "corpus.txt").write_text("The capital of France is Paris. Rome is a city in Italy by the sea.")
    return [
        "fit",
        f"--model.name={model_folder}",
        "--model.layers=[1,2]",
        "--model.dtype=float32",
        "--model.method.init_args.null_space_threshold=10.0",
        f"--model.statistics.corpus={tmp_path / 'corpus.txt'}",
        "--model.statistics.tokens=10",
        f"--model.statistics.cache_dir={tmp_path / 'cache'}",
        "--model.targets.steps=3",
        "--model.evaluation.perplexity_tokens=64",
        "--data.name=counterfact",
        f"--data.path={facts}",
        "--data.batch_size=2",
        f"--run_dir={tmp_path / 'run'}",
        "--trainer.val_check_interval=1",
        "--trainer.accelerator=cpu",
    ]


def test_a_run_leaves_what_it_promises(cli, model_folder, facts, tmp_path):
    status, out, err = cli(*tiny_run(model_folder, facts, tmp_path))
    assert status == 0, err
    run = tmp_path / "run"
    results = json.loads((run / "results.json").read_text())
    assert set(results) == {*OWN, "hyperspherical_energy", "spearman", "abilities", "targets"}
    for when in ("before", "after"):
        scores = {"efficacy", "generalization", "specificity", "neighborhood_agreement", "perplexity"}
        assert set(results[when]) >= scores
    assert results["edits"] == 3
    assert results["method"] == "AlphaEdit + SPHERE"
    assert (results["method_name"], results["transforms"]) == ("AlphaEdit", ["SPHERE"])
    tensors = load_file(run / "edited.safetensors")
    assert set(tensors) == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (1, 2)}
    assert set(results["hyperspherical_energy"]) == set(tensors)
    assert (run / "report.html").stat().st_size > 10_000
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["batch_size"] == 2
    header = (run / "metrics.csv").read_text().split("\n")[0].split(",")
    assert {"edits", "val/efficacy", "batch/efficacy", "val/perplexity", "energy/mean", "time/seconds"} <= set(header)
    assert "efficacy" in out
    assert "2/3 edits" in err


def test_a_run_that_a_validation_stops_is_scored_to_the_end_all_the_same(cli, model_folder, facts, tmp_path):
    stop = ["--trainer.callbacks=sphere_callbacks.CollapseGuard", "--trainer.callbacks.check=validation",
            "--trainer.callbacks.action=stop", '--trainer.callbacks.below={"val/efficacy": 2.0}']  # fmt: skip
    status, _, err = cli(*tiny_run(model_folder, facts, tmp_path), *stop)
    assert status == 0, err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["edits"] == 2
    assert {"efficacy", "probability/efficacy", "generation/efficacy"} <= set(results["after"])
    assert results["cases"]


def test_a_run_takes_the_cpu_where_the_accelerator_has_no_double_precision(
    cli, model_folder, facts, tmp_path, monkeypatch, single_precision, caplog
):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("mps"))
    single_precision("mps")
    *arguments, chosen = tiny_run(model_folder, facts, tmp_path)
    assert chosen == "--trainer.accelerator=cpu"
    status, _, err = cli(*arguments)
    assert status == 0, err
    assert "has no double precision, which edits need: the CPU is used" in caplog.text
    assert (tmp_path / "run" / "edited.safetensors").exists()


def test_an_architecture_of_ones_own_is_kept_with_the_run(cli, model_folder, facts, tmp_path):
    own = {"final_norm": "model.norm", "projection": "mlp.down_proj"}
    status, _, err = cli(*tiny_run(model_folder, facts, tmp_path), f"--model.architecture={json.dumps(own)}")
    assert status == 0, err
    assert SavedRun.open(tmp_path / "run").history.header.architecture == own
    wrong = {**own, "block": "model.blocks.{}"}
    status, _, err = cli(
        *tiny_run(model_folder, facts, tmp_path),
        f"--model.architecture={json.dumps(wrong)}",
        f"--run_dir={tmp_path / 'other'}",
    )
    assert status == 2
    assert "'model.blocks.3' as its block" in " ".join(err.split())


def test_several_runs_are_compared_on_one_page(cli, model_folder, facts, tmp_path):
    command = tiny_run(model_folder, facts, tmp_path)
    assert cli(*command, f"--run_dir={tmp_path / 'a'}")[0] == 0
    assert cli(*command, f"--run_dir={tmp_path / 'b'}", "--projection.strength=0")[0] == 0
    status, out, err = cli("compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "both.html"))
    assert status == 0, err
    assert "both.html" in out
    page = (tmp_path / "both.html").read_text()
    assert "AlphaEdit + SPHERE" in page
    status, _, err = cli("compare", str(tmp_path))
    assert status == 2
    assert "error:" in err


def test_a_saved_run_is_exported_compared_scored_and_asked(cli, model_folder, facts, tmp_path):
    run = str(tmp_path / "run")
    command = tiny_run(model_folder, facts, tmp_path)
    assert cli(*command, "--projection.strength=0.8", "--trainer.enable_checkpointing=true")[0] == 0
    status, out, err = cli("export", "--run_dir", run, "--without", "2")
    assert status == 0, err
    assert out.startswith("2 edits of ")
    assert (tmp_path / "run" / "export-without" / "model.safetensors").is_file()
    status, out, err = cli("diff", "--run_dir", run)
    assert status == 0, err
    assert out.count("down_proj.weight") == 2
    scores = []
    for arguments in (["validate"], ["test", "--ckpt_path", "last"]):
        status, out, err = cli(*arguments, "--run_dir", run)
        assert status == 0, err
        assert "efficacy" in out
        scores.append(json.loads((tmp_path / "run" / "validation.json").read_text()))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert scores[0]["before"] == results["before"]
    assert scores[0]["after"] == scores[1]["after"] == results["after"]
    status, out, err = cli("validate", "--run_dir", run, "--data.limit=1", "--data.offset=1")
    assert (status, "records scored: 1 of 3 (--data.offset, --data.limit)\n" in out) == (0, True), err
    status, out, err = cli("predict", "--run_dir", run, "--prompt", "Rome is", "--max_tokens", "2")
    assert (status, "before" in out) == (0, True), err


@pytest.mark.parametrize("command", ["export", "diff", "validate", "test", "predict"])
def test_a_folder_that_is_no_run_ends_a_command_with_one_message(cli, tmp_path, command):
    status, out, err = cli(command, "--run_dir", str(tmp_path))
    assert status == 2
    assert "error:" in err
    assert "no edits.jsonl" in err
    assert "Traceback" not in err + out


@pytest.mark.parametrize(
    ("damage", "words"),
    [("no model_type", "names no model_type"), ("truncated weights", "was cut off"), ("no tokenizer", "no tokenizer")],
)
def test_a_model_folder_that_is_not_whole_ends_with_one_message(cli, model_folder, facts, tmp_path, damage, words):
    if damage == "no model_type":
        (model_folder / "config.json").write_text("{}")
    elif damage == "truncated weights":
        path = model_folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:500])
    else:
        for path in model_folder.glob("tokenizer*"):
            path.unlink()
    status, out, err = cli(*tiny_run(model_folder, facts, tmp_path))
    assert status == 2
    assert words in err
    assert "Traceback" not in err + out


def test_a_mistake_in_the_data_leaves_no_run_folder(cli, model_folder, facts, tmp_path):
    facts.write_text("[]")
    assert cli(*tiny_run(model_folder, facts, tmp_path))[0] == 2
    assert not (tmp_path / "run").exists()


def test_what_is_saved_under_prune_is_what_was_scored(cli, model_folder, facts, tmp_path, monkeypatch, tiny_lm):
    from sphere_pl.run import results

    saved = []
    original = results.save_edited
    monkeypatch.setattr(results, "save_edited", lambda editor, path: (saved.append(editor), original(editor, path)))
    strong = [
        "--model.guard.first_batch=warn",
        "--model.targets.clamp=40",
        "--model.targets.learning_rate=20",
        "--model.method.init_args.ridge=1e-6",
    ]
    status, _, err = cli(*tiny_run(model_folder, facts, tmp_path), "--config", "callbacks/prune", *strong)
    assert status == 0, err
    tensors = load_file(tmp_path / "run" / "edited.safetensors")
    (editor,) = saved
    for live, before, site in zip(editor.weights, tiny_lm().sites([1, 2]), editor.sites, strict=True):
        start, limit = before.read(), float(spectral_norm(before.read()))
        assert spectral_norm(live.detach() - start) > 1.5 * limit  # the live weights are not restrained
        expected = start + restrain_spectrum(live.detach() - start, limit)
        torch.testing.assert_close(tensors[site.name], expected, rtol=1e-4, atol=1e-4)


def test_the_edited_matrices_fit_back_into_the_model(cli, model_folder, facts, tmp_path, tiny_lm):
    status, _, err = cli(*tiny_run(model_folder, facts, tmp_path))
    assert status == 0, err
    model = tiny_lm().model
    before = model.get_parameter("model.layers.1.mlp.down_proj.weight").clone()
    _, unexpected = model.load_state_dict(load_file(tmp_path / "run" / "edited.safetensors"), strict=False)
    assert not unexpected
    assert not torch.equal(before, model.get_parameter("model.layers.1.mlp.down_proj.weight"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--model.layers=[9]"], "layers 0 to 3"),
        (["--model.name=/nowhere/at/all"], "neither a file nor a folder"),
        (["--data.path=missing.json"], "could not be read"),
        (["--data.batch_size=0"], "batch_size=0"),
        (["--projection.strength=1.5"], "strength=1.5"),
        (["--projection.cumulative_ratio=-0.1"], "cumulative_ratio=-0.1"),
        (["--config=method/nothing"], "no such group.\nThere are .*method/memit"),
        (["--trainer.precision=bf16-true"], "precision"),
        (["--model.targets.steps=0"], "steps=0"),
        (["--model.contexts=-1"], "contexts=-1"),
        (["--model.statistics.batch_size=0"], "statistics.batch_size=0"),
        (["--model.evaluation.batch_size=0"], "evaluation.batch_size=0"),
        (["--model.evaluation.perplexity_tokens=1"], "must be 0"),
        (["--model.statistics.cache_dir=/proc/none"], "cannot be made"),
        (["--ckpt_path=missing.ckpt"], "is no file"),
        (["--trainer.callbacks+=sphere_callbacks.HypersphericalEnergy"], "HypersphericalEnergy`: leave it out"),
    ],
)
def test_a_users_mistake_ends_with_one_message(cli, model_folder, facts, tmp_path, change, words):
    import re

    status, out, err = cli(*tiny_run(model_folder, facts, tmp_path), *change)
    assert status == 2
    assert re.search(words, err), err
    assert "Traceback" not in err + out
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_record_with_a_missing_field_names_file_and_line(cli, model_folder, facts, tmp_path):
    lines = ["[", json.dumps(json.loads(facts.read_text())[0]) + ",", '{"case_id": 1}', "]"]
    facts.write_text("\n".join(lines))
    status, _, err = cli(*tiny_run(model_folder, facts, tmp_path))
    assert status == 2
    assert f"{facts}, line 3: the field 'requested_rewrite" in err


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_every_configuration_file_is_parsed(parsed, path):
    args = [] if path.name == "default.yaml" else ["--config", str(path.with_suffix(""))]
    config = parsed(*args)["model"]
    module, _, name = config["method"]["class_path"].rpartition(".")
    if not getattr(import_module(module), name).needs_targets:
        assert not config["targets"]["anchor"]  # the editor would refuse the pair


def test_options_of_a_step_that_the_method_does_not_have_are_refused(cli, model_folder, facts, tmp_path):
    run = [*tiny_run(model_folder, facts, tmp_path), "--config=method/ultraedit"]
    idle = [each for each in run if each.startswith("--model.targets")]
    status, _, err = cli(*run)
    assert status == 2
    assert f"UltraEdit optimises no target values: `{' '.join(idle)}` would change nothing" in err
    assert not (tmp_path / "run").exists()


def test_group_files_compose_in_the_order_given(cli, parsed):
    words = ["--config", "method/memit", "--config=callbacks/sphere", "--data.limit=7"]
    status, out, err = cli("fit", *words, "--print_config")
    assert status == 0, err
    config = yaml.safe_load(out)
    assert config == parsed(*words)
    assert config["model"]["method"]["class_path"] == "sphere_pl.methods.MEMIT"
    assert config["projection"]["strength"] == 0.8
    assert config["data"]["limit"] == 7


def test_a_users_own_file_comes_before_a_group_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("{}")
    assert find_config("mine.yaml") == "mine.yaml"
    assert find_config("method/memit.yaml").endswith("conf/method/memit.yaml")
    assert "method/memit" in group_files()
    assert resolve_group_files(["predict", "--data.limit", "3"]) == ["predict", "--data.limit", "3"]
    with pytest.raises(UserError, match="no such group"):
        resolve_group_files(["-c", "method/none"])


def test_a_reference_to_nothing_is_named(cli):
    status, _, err = cli("fit", "--data.limit=${nothing}", "--print_config")
    assert status == 2
    assert "error: A ${...} of the configuration could not be resolved: " in err
    assert "'nothing'" in err


def test_help_names_what_others_rely_on(fresh_help):
    for flag in ("--model.name", "--data.name", "--data.path", "--data.limit", "--data.batch_size", "--run_dir"):
        assert flag in fresh_help[0]


@pytest.fixture
def cut(monkeypatch):
    """End a run in the middle, as a power cut would."""
    from sphere_pl.editor import SequentialEditor

    original = SequentialEditor.on_train_batch_start

    def cut(batch):
        def hook(self, requests, batch_idx):
            if batch_idx == batch:
                raise SystemExit(9)
            original(self, requests, batch_idx)

        monkeypatch.setattr(SequentialEditor, "on_train_batch_start", original if batch is None else hook)

    return cut


def test_a_run_goes_on_from_its_folder_alone(cli, cut, model_folder, facts, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("torch.load knows no safetensors before torch 2.13")

    monkeypatch.setattr(torch, "load", refused)
    command = [*tiny_run(model_folder, facts, tmp_path), "--data.batch_size=1", "--checkpoints.max_overhead=1"]
    assert cli(*command, f"--run_dir={tmp_path / 'whole'}")[0] == 0
    cut(2)
    assert cli(*command)[0] == 9
    run = tmp_path / "run"
    kept = (run / "config.yaml").read_text()
    cut(None)
    status, _, err = cli("fit", f"--run_dir={run}", "--ckpt_path=last")
    assert status == 0, err
    for name in ("edited.safetensors",):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    columns = [
        [line.split(",")[:1] for line in (f / "metrics.csv").read_text().split()] for f in (run, tmp_path / "whole")
    ]
    assert columns[0] == columns[1]
    assert (run / "config.yaml").read_text() == kept
    assert not (run / "checkpoints").exists()
    status, _, err = cli("fit", "--run_dir", str(run), "--ckpt_path", "last")
    assert status == 2
    assert "is finished" in err


TWO_CALLBACKS = """
trainer:
  callbacks+:
    - class_path: sphere_callbacks.PrincipalShares
      init_args: {ratios: [0.1, 0.5, 0.9]}
    - class_path: sphere_callbacks.PrincipalDirections
      init_args: {cumulative_ratio: 0.5}
"""


@pytest.mark.parametrize("config", ["callbacks/prune", "callbacks/rect", "two_callbacks.yaml"])
def test_the_whole_command_given_again_goes_on_with_the_run(
    cli, cut, model_folder, facts, tmp_path, monkeypatch, config
):
    monkeypatch.chdir(tmp_path)
    Path("two_callbacks.yaml").write_text(TWO_CALLBACKS)
    fit, *settings = tiny_run(model_folder, facts, tmp_path)
    command = [fit, f"--config={config}", *settings, "--data.batch_size=1", "--checkpoints.max_overhead=1"]
    command.append("--trainer.callbacks+=sphere_callbacks.CollapseGuard")
    status, _, err = cli(*command, f"--run_dir={tmp_path / 'whole'}")
    assert status == 0, err
    cut(2)
    assert cli(*command, "--ckpt_path=last")[0] == 9
    cut(None)
    status, _, err = cli(*command, "--ckpt_path=last")
    assert status == 0, err
    edited = [(tmp_path / name / "edited.safetensors").read_bytes() for name in ("run", "whole")]
    assert edited[0] == edited[1]


def test_an_interrupted_run_is_not_overwritten_by_mistake(cli, cut, model_folder, facts, tmp_path):
    command = [*tiny_run(model_folder, facts, tmp_path), "--data.batch_size=1", "--checkpoints.max_overhead=1"]
    cut(2)
    assert cli(*command)[0] == 9
    status, _, err = cli(*command)
    assert status == 2
    assert "--ckpt_path last" in err
    status, _, err = cli("fit", f"--run_dir={tmp_path / 'run'}", "--ckpt_path=last", "--data.batch_size=3")
    assert status == 2
    assert "data.batch_size: 1 then, 3 now" in err
    facts.write_text(facts.read_text().replace("Berlin", "Madrid"))
    status, out, err = cli("fit", f"--run_dir={tmp_path / 'run'}", "--ckpt_path=last")
    assert status == 2
    assert "are not those that the checkpoint was written for" in err
    assert "Traceback" not in out + err


def test_ctrl_c_says_how_to_go_on(cli, model_folder, facts, tmp_path, monkeypatch):
    import signal

    from sphere_pl.editor import SequentialEditor

    original = SequentialEditor.find_targets

    def interrupted(self, batch):
        if batch.start == 1:
            signal.raise_signal(signal.SIGINT)
        return original(self, batch)

    monkeypatch.setattr(SequentialEditor, "find_targets", interrupted)
    status, out, err = cli(*tiny_run(model_folder, facts, tmp_path), "--data.batch_size=1")
    assert status == 130
    assert f"Resume with: python -m sphere_pl fit --run_dir {tmp_path / 'run'} --ckpt_path last" in err
    assert "Traceback" not in out + err
    monkeypatch.setattr(SequentialEditor, "find_targets", original)
    assert cli("fit", f"--run_dir={tmp_path / 'run'}", "--ckpt_path=last")[0] == 0


@pytest.mark.parametrize("content", [b"junk", b"", b"PK\x03\x04junk", b"\x80\x04junk", b"\xff" * 64])
def test_a_junk_checkpoint_ends_with_one_message(cli, model_folder, facts, tmp_path, content):
    (tmp_path / "junk.ckpt").write_bytes(content)
    status, out, err = cli(*tiny_run(model_folder, facts, tmp_path), f"--ckpt_path={tmp_path / 'junk.ckpt'}")
    assert status == 2
    assert "is not a checkpoint of an editing run" in err
    assert "Traceback" not in out + err


def test_last_without_anything_to_go_on_from_begins_anew(cli, model_folder, facts, tmp_path, caplog):
    status, _, err = cli(*tiny_run(model_folder, facts, tmp_path), "--ckpt_path=last")
    assert status == 0, err
    assert "holds no checkpoint: the run begins from the start" in caplog.text
    assert cli("fit", "--ckpt_path=last")[0] == 2


def test_tokens_never_reach_a_file_of_the_run(cli, model_folder, facts, tmp_path, monkeypatch):
    secrets = {"HF_TOKEN": "hf_SecretOfTheHub123", "WANDB_API_KEY": "5ecretofwandb" + "0" * 27}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    status, out, err = cli(*tiny_run(model_folder, facts, tmp_path))
    assert status == 0, err
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any("wandb" in path.parts for path in files)
    for value in secrets.values():
        assert value not in out + err
        assert not [path for path in files if value.encode() in path.read_bytes()]


def test_general_abilities_are_scored_in_a_run(cli, model_folder, facts, tmp_path):
    (tmp_path / "general").mkdir()
    record = {"question": "is rome in italy", "answer": True, "passage": "Rome is a city in Italy."}
    (tmp_path / "general" / "boolq-dev.jsonl").write_text(json.dumps(record))
    run = tiny_run(model_folder, facts, tmp_path)
    status, out, err = cli(
        *run, "--abilities.tasks=[boolq]", "--abilities.every=1", f"--abilities.data_dir={tmp_path / 'general'}"
    )
    assert status == 0, err
    found = json.loads((tmp_path / "run" / "results.json").read_text())["abilities"]
    assert set(found["boolq"]) >= {"before", "after", "standard_error", "items"}
    assert found["boolq"]["items"] == 1
    assert "boolq (accuracy)" in out
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert [row["edits"] for row in rows if row["abilities/boolq"]] == ["0.0", "2.0", "3.0"]
    assert [float(row["drift/kl"]) > 0 for row in rows if row["drift/kl"]] == [True, True]
    kept = json.loads((tmp_path / "run" / "abilities.json").read_text())
    assert len(kept) == 3


def test_missing_data_of_an_ability_ends_a_run_before_anything_is_written(cli, model_folder, facts, tmp_path):
    run = tiny_run(model_folder, facts, tmp_path)
    status, _, err = cli(*run, "--abilities.tasks=[boolq]", f"--abilities.data_dir={tmp_path}")
    assert status == 2
    assert "error: The task 'boolq' needs boolq-dev.jsonl" in err
    assert not (tmp_path / "run").exists()


def test_every_logger_gets_the_same_scalars(cli, model_folder, facts, tmp_path):
    loggers = [
        *("--trainer.logger+=sphere_pl.run.loggers.MetricsFile", f"--trainer.logger.run_dir={tmp_path / 'run'}"),
        *("--trainer.logger+=CSVLogger", f"--trainer.logger.save_dir={tmp_path / 'csv'}"),
        *("--trainer.logger+=TensorBoardLogger", f"--trainer.logger.save_dir={tmp_path / 'tb'}"),
    ]
    status, _, err = cli(*tiny_run(model_folder, facts, tmp_path), *loggers)
    assert status == 0, err
    ours = rows_of(tmp_path / "run" / "metrics.csv")
    (csv_file,) = (tmp_path / "csv").rglob("metrics.csv")
    (events,) = (tmp_path / "tb").rglob("events.out.tfevents.*")
    assert {"edits", "val/efficacy", "batch/efficacy", "energy/mean", "time/seconds"} <= set(ours)
    assert set(rows_of(csv_file)) == set(ours)
    board = scalars_of(events)
    assert set(board) - {"hp_metric"} == set(ours)
    assert board["val/efficacy"] == pytest.approx(ours["val/efficacy"])
    assert board["edits"] == pytest.approx(ours["edits"])
    assert 'id="accuracy"' in (tmp_path / "run" / "report.html").read_text()


def rows_of(path):
    """The values of each scalar of a CSV file, in the order of its rows."""
    found = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, text in row.items():
                if text and name not in {"step", "epoch"}:
                    found.setdefault(name, []).append(float(text))
    return found


def scalars_of(path):
    """The values of each scalar of a TensorBoard file: records of a length, its checksum, an event and its checksum."""
    event = pytest.importorskip("tensorboardX.proto.event_pb2").Event
    found, data = {}, path.read_bytes()
    while data:
        size = int.from_bytes(data[:8], "little")
        for value in event.FromString(data[12 : 12 + size]).summary.value:
            if value.HasField("simple_value") and value.tag != "epoch":
                found.setdefault(value.tag, []).append(value.simple_value)
        data = data[16 + size :]
    return found
