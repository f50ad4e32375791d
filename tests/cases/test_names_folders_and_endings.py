"""Reports of others about names, run folders, wandb, consoles, trainer flags and the end of a run.

Each test names the reports whose kind it holds: wandb, PL (Lightning), jsonargparse, pyyaml, rich, EE (EasyEdit).
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from sphere_pl.commands.resuming import resolve_resume
from sphere_pl.errors import UserError
from sphere_pl.process.closing import after_results
from sphere_pl.process.console import prepare_streams, say
from sphere_pl.run.folder import prepare_run_folder
from sphere_pl.run.loggers import WandbSettings, run_loggers
from sphere_pl.text.names import check_name, literal_names, resume_command, to_yaml

DISGUISED = [
    "1e5", "007", "2024-01-01", "on", "true", "null", "0x1F", "1_000", "~", "=", ":", "12:30:45", ".inf", "nan", "#1",
    "---", "&a", "*a", "!t", "[x]", "[1]", "{a: 1}", "${x}", "\\${x}", "${data.name}", "a\\", "[bold]x[/]",
    ":smile:", "100%", "%s", "it's", '"', " a ", "-x", "--run_dir", "a\nb", "a\tb", "\x85", "é", "e\u0301", "שלום",
    "😀", "a.", "<<", "- a", "? a", "|", "@x", "a: b", "a #b", "x" * 200,
]  # fmt: skip
NASTY = '[bold]1e5[i] :smile: 100% ${x} it\'s "é" 😀.'


@pytest.fixture
def cli(monkeypatch, tmp_path, command_line):
    """The command line in an empty folder, without wandb."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return command_line


@pytest.fixture
def tiny(model_folder, tmp_path):
    """The command of a run of three edits in two batches."""
    edits = [("The capital of {} is", "France", "Berlin"), ("{} is a city in", "Rome", "Norway"),
             ("The mother tongue of {} is", "Anna Karlsson", "Italy")]  # fmt: skip
    records = [dict(zip(("prompt", "subject", "target_new"), each, strict=True), case_id=NASTY) for each in edits[:1]]
    records += [dict(zip(("prompt", "subject", "target_new"), each, strict=True)) for each in edits[1:]]
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "corpus.txt").write_text("The capital of France is Paris. Rome is a city in Italy by the sea.")
    return [
        "fit", f"--model.name={model_folder}", "--model.layers=[1,2]", "--model.dtype=float32",
        "--model.method.init_args.null_space_threshold=10.0", f"--model.statistics.corpus={tmp_path / 'corpus.txt'}",
        "--model.statistics.tokens=10", f"--model.statistics.cache_dir={tmp_path / 'cache'}",
        "--model.targets.steps=3", "--model.evaluation.perplexity_tokens=64", "--data.name=jsonl",
        f"--data.path={tmp_path / 'facts.jsonl'}", "--data.batch_size=1", "--trainer.accelerator=cpu",
        "--checkpoints.max_overhead=1",
    ]  # fmt: skip


def of(config, option):
    for part in option.split("."):
        config = config[part]
    return config


text = st.one_of(st.sampled_from(DISGUISED), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
relaxed = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


OPTIONS = ["run_dir", "model.name", "model.revision", "wandb.project", "data.path"]
REQUIRED = ["--model.method=AlphaEdit", "--model.layers=[1]"]


@pytest.fixture
def kept(fit_parser, tmp_path):
    """Check that names given to options are read, written and read back; without defaults it takes a twelfth."""
    path = tmp_path / "config.yaml"

    def check(names, *more, defaults):
        expected = {
            option: None if name.strip() == "null" and option in {"model.revision", "data.path"} else name
            for option, name in names.items()
        }
        words = [f"--{option}={name}" for option, name in names.items()]
        config = fit_parser.parse_args([*literal_names(words), *more], defaults=defaults)
        assert {option: of(config, option) for option in OPTIONS} == expected
        written = fit_parser.dump(config, skip_none=False, format="json", skip_validation=True)
        path.write_text(to_yaml(json.loads(written)), encoding="utf-8")
        again = fit_parser.parse_args(["--config", str(path)], defaults=defaults)
        assert {option: of(again, option) for option in OPTIONS} == expected

    return check


def test_a_name_is_read_written_and_read_back_as_it_is(kept):
    """jsonargparse #672, pyyaml #417: `1e5` became a number and the run's own config.yaml could not be read back."""

    @relaxed
    @given(text)
    def check(name):
        kept(dict.fromkeys(OPTIONS, name), *REQUIRED, defaults=False)

    check()


def test_names_are_kept_among_all_other_settings(kept):
    """The whole configuration, as a run writes it: each name once, on one of the options."""
    for start in range(0, len(DISGUISED), len(OPTIONS)):
        names = (DISGUISED[start:] + DISGUISED)[: len(OPTIONS)]
        kept(dict(zip(OPTIONS, names, strict=True)), defaults=True)


@relaxed
@given(text)
@example("null")
def test_the_advised_command_can_be_pasted_into_a_shell(name):
    """jsonargparse #672: what a run advised for going on failed."""
    command = shlex.split(resume_command(name))
    assert command[:4] == ["python", "-m", "sphere_pl", "fit"]
    given = command[4:]
    assert (given[0] == f"--run_dir={name}") or given[:2] == ["--run_dir", name]


@relaxed
@given(text)
def test_a_printed_line_is_the_line(name):
    """rich #1157: brackets in a path were taken for markup, and long paths folded."""
    import io

    stream = io.StringIO()
    say(f"Open {name}", Console(file=stream, width=20))
    assert stream.getvalue() == f"Open {name}\n"


def test_names_that_no_file_can_have_are_refused():
    for name in ("", "a\0b", "\udcff"):
        with pytest.raises(UserError, match="--run_dir"):
            check_name("--run_dir", name)


def test_a_run_and_what_is_made_of_it_may_be_called_after_nobodys_home(cli, tiny, tmp_path, monkeypatch):
    """`~5` is no user's home; in a folder that is called `~` nothing goes to the user's."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("~5", "~"):
        status, _, err = cli(*tiny, f"--run_dir={name}")
        assert status == 0, err
        kept = yaml.safe_load((tmp_path / name / "config.yaml").read_text(encoding="utf-8"))["abilities"]["keep"]
        assert Path(kept).expanduser() == tmp_path / name / "abilities.json"
    for command in ("log", "verify", "validate", "predict", "export"):
        status, _, err = cli(command, "--run_dir=~5")
        assert status == 0, err
        status, _, err = cli(command, "--run_dir=~nobody-of-this-name")
        assert "is no folder" in err
    assert "is no folder" in cli("fit", "--from=~nobody-of-this-name", "--data.offset=1")[2]


def test_a_command_in_a_message_about_a_finished_run_can_be_pasted(cli, tmp_path):
    """What was advised named folders bare, which a shell reads as several words or as something else."""
    run = tmp_path / "my $run"
    run.mkdir()
    for name in ("results.json", "config.yaml", "edits.jsonl"):
        (run / name).write_text("{}")
    (run / "edited.safetensors").write_bytes(b"")
    err = cli("fit", f"--run_dir={run}", "--ckpt_path=last")[2]
    assert f"give --from '{run}' in the place of" in err
    for name in (run, run / "edited.safetensors"):
        assert f"`export --run_dir '{run}'`" in cli("fit", f"--model.name={name}", "--run_dir=new")[2]


def cut(monkeypatch, batch):
    """End the next run before a batch, as a power cut would."""
    from sphere_pl.editor import SequentialEditor

    original = SequentialEditor.on_train_batch_start

    def hook(self, requests, batch_idx):
        if batch_idx == batch:
            raise SystemExit(9)
        original(self, requests, batch_idx)

    monkeypatch.setattr(SequentialEditor, "on_train_batch_start", hook)
    return lambda: monkeypatch.setattr(SequentialEditor, "on_train_batch_start", original)


@pytest.mark.parametrize("name", [NASTY, "1e5", "-null\n#"])
def test_a_run_under_any_name_goes_on_and_is_exported_alike(cli, tiny, tmp_path, monkeypatch, name):
    """Names with markup, signs and disguised numbers through a whole run, its resumption and its export."""
    (tmp_path / "model").rename(tmp_path / f"model{name}")
    tiny[1] = f"--model.name={tmp_path / 'model'}{name}"
    assert cli(*tiny, "--run_dir=plain")[0] == 0
    uncut = cut(monkeypatch, 2)
    assert (
        cli(
            *tiny,
            f"--run_dir={name}",
            f"--wandb.project={name}",
            f"--wandb.tags=[{json.dumps(name, ensure_ascii=False)}]",
        )[0]
        == 9
    )
    uncut()
    config = yaml.safe_load((tmp_path / name / "config.yaml").read_text(encoding="utf-8"))
    written = [config["run_dir"], config["wandb"]["project"], config["wandb"]["tags"][0]]
    assert [each.replace("\\${", "${") for each in written] == [name] * 3
    status, out, err = cli(*shlex.split(resume_command(name))[3:])
    assert status == 0, err
    assert f"Open {Path(name) / 'report.html'}\n" in out
    for folder in ("plain", name):
        status, out, err = cli("export", f"--run_dir={folder}")
        assert status == 0, err
        assert f" edits of {folder} are in {folder}/export\n" in out
    for file in ("edited.safetensors", "export/model.safetensors", "export/edits.json"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / name / file).read_bytes()
    assert json.loads((tmp_path / name / "export" / "edits.json").read_text(encoding="utf-8"))[0]["case_id"] == NASTY


def files_of(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_never_mixed_with_another(cli, tiny, tmp_path):
    """PL #7963, #8059: a second run in a folder left the first one's export and predictions beside its own results."""
    run = tmp_path / "run"
    assert cli(*tiny, f"--run_dir={run}")[0] == 0
    fresh = files_of(run)
    before = (run / "results.json").read_bytes()
    assert cli("export", "--run_dir", str(run), "--delta_only")[0] == 0
    (run / "notes.txt").write_text("mine")
    status, _, err = cli(*tiny, f"--run_dir={run}")
    assert (status, (run / "results.json").read_bytes()) == (2, before)
    assert "holds a finished run" in err
    assert "another --run_dir" in err
    assert "--overwrite" in err
    status, _, err = cli(*tiny, f"--run_dir={run}", "--overwrite", "--data.limit=1")
    assert status == 0, err
    assert json.loads((run / "results.json").read_text())["edits"] == 1
    batches = {name for name in fresh if name.startswith("edits/")}
    assert files_of(run) - {"notes.txt"} == fresh - set(sorted(batches)[1:])
    assert (run / "notes.txt").read_text() == "mine"
    assert yaml.safe_load((run / "config.yaml").read_text())["overwrite"] is False
    status, _, err = cli("fit", f"--run_dir={run}", "--ckpt_path=last", "--overwrite")
    assert status == 2


def test_a_folder_that_is_no_runs_loses_nothing(tmp_path):
    prepare_run_folder(tmp_path / "missing", overwrite=True)
    (tmp_path / "log.txt").write_text("of `| tee`")
    prepare_run_folder(tmp_path, overwrite=False)
    with pytest.raises(UserError, match="is no run's folder"):
        prepare_run_folder(tmp_path, overwrite=True)
    (tmp_path / "config.yaml").write_text("a: 1")
    with pytest.raises(UserError, match=r"holds config\.yaml"):
        prepare_run_folder(tmp_path, overwrite=False)
    assert files_of(tmp_path) == {"log.txt", "config.yaml"}


def test_a_mistyped_run_is_not_begun(cli, tmp_path):
    """PL #5325: a run that was not there became the default run in a new folder."""
    status, _, err = cli("fit", "--run_dir", "mistyped", "--ckpt_path", "last")
    assert status == 2
    assert "there is no run in mistyped" in err
    assert not (tmp_path / "mistyped").exists()
    assert resolve_resume(["fit", "--run_dir=null", "--data.limit=1", "--ckpt_path=last"])[1] == "--run_dir=null"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "disabled"}, None),
        ("[default]\nmode = offline\n", "offline"),
        ("[default]\nmode = disabled\n", None),
        ({}, "online"),
    ],
)
def test_wandbs_own_settings_decide(tmp_path, monkeypatch, setting, expected):
    """wandb #1060, #2048: `wandb offline` in the folder, or WANDB_MODE=dryrun, and the run would have been uploaded."""
    import wandb

    given = []

    class Run:
        def define_metric(self, *_, **__): ...

    monkeypatch.setattr(wandb, "init", lambda **arguments: given.append(arguments) or Run())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for name, value in {"WANDB_API_KEY": "x" * 40, "WANDB_CONFIG_DIR": str(tmp_path / "none")}.items():
        monkeypatch.setenv(name, value)
    if isinstance(setting, str):
        (tmp_path / "wandb").mkdir()
        (tmp_path / "wandb" / "settings").write_text(setting)
    else:
        for name, value in setting.items():
            monkeypatch.setenv(name, value)
    run_loggers(str(tmp_path / "run"), WandbSettings(), {})
    assert len(given) == (expected is not None)
    # Ours is given only where wandb has none: None lets its own hold.
    assert [each["mode"] for each in given] == ([] if not given else ["online"] if expected == "online" else [None])


def test_a_project_of_the_users_wandb_is_kept(tmp_path, monkeypatch):
    import wandb

    given = []
    monkeypatch.setattr(wandb, "init", lambda **arguments: given.append(arguments))
    for name, value in {
        "PROJECT": "mine",
        "NAME": "n",
        "RUN_GROUP": "g",
        "DIR": str(tmp_path),
        "MODE": "offline",
    }.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    run_loggers(str(tmp_path / "run"), WandbSettings(), {}, ["a"])
    run_loggers(str(tmp_path / "run"), WandbSettings(project="ours"), {}, ["a"])
    assert [each["project"] for each in given] == [None, "ours"]
    assert {given[0][name] for name in ("name", "group", "dir", "mode")} == {None}


def test_a_console_of_another_encoding_shows_signs_that_it_has(fresh_help, tiny, tmp_path):
    """PL #12823: UnicodeEncodeError after the run, and in --help."""
    # Others differ in the codec alone, which the next test tries.
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "WANDB_MODE": "disabled", "COLUMNS": "100"}
    program = [sys.executable, "-m", "sphere_pl", *tiny, "--run_dir=é±"]
    done = subprocess.run(program, capture_output=True, env=environment, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert (tmp_path / "é±" / "results.json").is_file()
    assert "Traceback" not in fresh_help[1]


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", b"0.5 +- 0.1 -> \\u67cf"), ("gbk", "0.5 ± 0.1 → 柏".encode("gbk"))]
)
def test_signs_fall_back_one_by_one(monkeypatch, tmp_path, encoding, shown):
    stream = (tmp_path / "out").open("w", encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    prepare_streams()
    say("0.5 ± 0.1 → 柏")
    stream.close()
    assert (tmp_path / "out").read_bytes() == shown + b"\n"


def test_trainer_flags_do_what_they_say_or_are_refused(cli, tiny, tmp_path):
    """PL #13203, #5136: a traceback, a complaint about a callback that nobody added, edits counted twice."""
    status, _, err = cli(*tiny, "--run_dir=trial", "--trainer.fast_dev_run=true")
    assert status == 0, err
    assert json.loads((tmp_path / "trial" / "results.json").read_text())["edits"] == 1
    assert cli("validate", "--run_dir=trial")[0] == 0
    status, _, err = cli(*tiny, "--run_dir=quiet", "--trainer.enable_progress_bar=false", "--trainer.logger=false")
    assert status == 0, err
    assert "edits" not in err
    status, _, err = cli(*tiny, "--run_dir=twice", "--trainer.max_epochs=2")
    assert status == 2
    assert "max_epochs=2" in err


@pytest.mark.parametrize("name", ["ddp_spawn", "ddp_fork", "ddp_notebook", "ddp_spawn_find_unused_parameters_true"])
def test_strategies_that_copy_the_process_are_refused_at_the_start(cli, tiny, tmp_path, name):
    """PL #1640, #15722: tracebacks at either end."""
    status, out, err = cli(*tiny, "--run_dir=run", f"--trainer.strategy={name}", "--trainer.devices=2")
    assert status == 2
    assert "--trainer.strategy=ddp" in err
    assert "Traceback" not in out + err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("step", ["sphere_pl.report.write_report", "sphere_pl.run.results.show",
                                  "sphere_pl.run.checkpoints._clear", "lightning.Callback.on_fit_end"]
)  # fmt: skip
def test_nothing_after_the_results_fails_a_run(cli, tiny, tmp_path, monkeypatch, caplog, step):
    """wandb #2181: exit 2 after a finished run because of wandb's table."""
    if step == "sphere_pl.run.checkpoints._clear":
        tiny = [*tiny, "--checkpoints.every_n_batches=1"]
    called = []

    def broken(*args, **_):
        if (tmp_path / "run" / "results.json").exists():
            called.append(args)
            raise OSError("no space left")

    monkeypatch.setattr(step, broken)
    status, out, err = cli(*tiny, "--run_dir=run")
    assert called
    assert status == 0, err
    assert "Traceback" not in out + err
    assert caplog.text.count("The results are saved, but not all that follows") == 1
    assert caplog.text.count("no space left") == 1


def test_a_step_after_the_results_says_what_failed(caplog):
    with after_results("the table"):
        raise OSError("no\nspace")
    assert "the table failed (no space)" in caplog.text


def test_a_reader_who_has_gone_is_no_error(monkeypatch, tmp_path):
    command = f"{shlex.quote(sys.executable)} -m sphere_pl fit --print_config | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""


def test_a_moved_model_is_named_by_the_commands_own_option(cli, tiny, model_folder, tmp_path):
    """EE #470: the message named an option that the command does not have."""
    assert cli(*tiny, "--run_dir=run")[0] == 0
    model_folder.rename(tmp_path / "moved")
    for command in ("validate", "predict", "export", "diff"):
        status, _, err = cli(command, "--run_dir", "run")
        assert status == 2
        assert "--model.name" not in err
        assert "--model " in err
    assert cli("validate", "--run_dir", "run", "--model", str(tmp_path / "moved"))[0] == 0
