"""Memory, disks and signals that end a run, at every stage of it: one message, and a run that is resumed unchanged.

The rows of reports: EasyEdit #26, #183 and #71 (out of memory).
"""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from importlib import import_module

import pytest
import torch

from sphere_pl.commands import main

pytestmark = pytest.mark.filterwarnings("ignore:The corpus", "ignore:.*logging interval")

OUT_OF_MEMORY, FULL = 3, 2
STATUS = {"memory": OUT_OF_MEMORY, "disk": FULL, "int": 130, "twice": 130, "term": 143, "hangup": 129}
SIGNALS = {
    "int": [signal.SIGINT],
    "twice": [signal.SIGINT, signal.SIGINT],
    "term": [signal.SIGTERM],
    "hangup": [signal.SIGHUP] if hasattr(signal, "SIGHUP") else [],
}

# Stage: what is replaced, the call at which the fault comes, what the message names.
STAGES = {
    "data": ("sphere_pl.data.datamodule:EditDataModule.setup", 1, "reading the data"),
    "model": ("sphere_pl.model.source:load_weights", 1, "loading the language model"),
    "settings": ("sphere_pl.commands.resuming:write_text", 1, ""),
    "statistics": ("sphere_pl.editing.prepared:second_moments", 1, "second moments"),
    "contexts": ("sphere_pl.editing.preparation:sample_contexts", 1, "sampling context templates"),
    "norms": ("sphere_pl.editing.preparation:SubjectStream", 1, "measuring target norms"),
    "unedited": ("sphere_pl.evaluation.evaluator:Evaluator.measure_unedited", 1, "measuring the unedited model"),
    "targets": ("sphere_pl.editing.problem:optimize_targets", 2, "optimising target values"),
    "solve": ("sphere_pl.methods.alphaedit:AlphaEdit.update", 4, "solving for an update"),
    "callback": ("sphere_callbacks:SparseProjection.on_before_optimizer_step", 3, "editing layer by layer"),
    "step": ("sphere_callbacks.layerwise:LayerwiseEdit._check_gradients", 4, "editing layer by layer"),
    "remember": ("sphere_pl.methods.alphaedit:AlphaEdit.remember", 4, "remembering the batch's keys"),
    "validation": ("sphere_pl.evaluation.evaluator:Evaluator.add", 2, "validating"),
    "scores": ("sphere_pl.evaluation.evaluator:Evaluator.scores", 2, "validating"),
    "edit tensors": ("sphere_pl.run.edit_log:write_tensors", 2, "edit log"),
    "edit line": ("sphere_pl.history.log:line_of", 3, "edits.jsonl"),
    "target table": ("sphere_pl.run.target_table:append_text", 1, ""),
    "metrics row": ("csv:DictWriter.writerow", 4, "metrics.csv"),
    "checkpoint": ("sphere_pl.storage.checkpoint_file:save_file", 2, "batch-000002.safetensors"),
    "matrices": ("sphere_pl.run.results:save_file", 1, "edited.safetensors"),
    "results": ("sphere_pl.run.results:write_text", 1, "writing the results"),
    "end of training": ("sphere_pl.progress:EditProgress.on_train_end", 1, ""),
}
PLACES = [
    *((stage, "memory") for stage in (
        "data", "model", "statistics", "contexts", "norms", "unedited", "targets", "solve", "callback", "step",
        "remember", "validation", "scores", "checkpoint", "matrices")),
    *((stage, "disk") for stage in (
        "settings", "statistics", "edit tensors", "edit line", "target table", "metrics row", "checkpoint", "matrices",
        "results")),
    *((stage, "int") for stage in (
        "data", "model", "statistics", "contexts", "unedited", "targets", "scores", "edit line", "results")),
    *((stage, "twice") for stage in (
        "targets", "solve", "callback", "step", "remember", "validation", "metrics row", "checkpoint")),
    *((stage, "term") for stage in ("model", "statistics", "norms", "targets", "remember", "end of training")),
    ("targets", "hangup"), ("contexts", "hangup"),
]  # fmt: skip
BEFORE_THE_FIRST_CHECKPOINT = set(list(STAGES)[:7]) | {"target table"}
MEMORY_ERRORS = [
    (RuntimeError, "could not create a primitive"),
    (RuntimeError, "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
                   " to allocate 4096 bytes. Error code 12 (Cannot allocate memory)"),
    (MemoryError,),
    (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139 GiB"),
    (OSError, 12, "Cannot allocate memory"),
]  # fmt: skip


def strike(kind, place):
    """Let a fault come: signals return when the run may finish its batch first."""
    if kind == "memory":
        error, *reason = MEMORY_ERRORS[place % len(MEMORY_ERRORS)]
        raise error(*reason)
    if kind == "disk":
        raise OSError(28, "No space left on device")
    for signum in SIGNALS[kind]:
        signal.raise_signal(signum)


@pytest.fixture
def fault(monkeypatch):
    """Put a fault into a stage."""

    def put(stage, kind, run):
        target, call, _ = STAGES[stage]
        module, _, path = target.partition(":")
        *owners, name = path.split(".")
        owner = import_module(module)
        for each in owners:
            owner = getattr(owner, each)
        original, calls = getattr(owner, name), []

        def replaced(*args, **kwargs):
            if stage != "metrics row" or args[1]["step"] != "step":  # no header
                calls.append(name)
            if len(calls) == call:
                if kind == "disk" and stage in {"checkpoint", "matrices"}:
                    args[1].write_bytes(b"half")
                if kind == "disk" and stage == "metrics row":
                    args[0].writer.writerow(["1", "half"])
                if kind == "disk" and stage == "edit line":
                    (run / "edits.jsonl").write_text((run / "edits.jsonl").read_text() + '{"number": 2, "ba')
                strike(kind, PLACES.index((stage, kind)))
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, replaced)
        return calls

    return put


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_lm):
    """A model, facts and settings of a run of three batches."""
    folder = tmp_path_factory.mktemp("base")
    lm = tiny_lm()
    lm.model.save_pretrained(folder / "model")
    lm.tokenizer.save_pretrained(folder / "model")
    (folder / "corpus.txt").write_text("The capital of France is Paris. Rome is a city in Italy by the sea.")
    edits = [("The capital of {} is", "France", "Berlin", "Paris"), ("{} is a city in", "Rome", "Norway", "Italy"),
             ("The mother tongue of {} is", "Anna Karlsson", "Italy", "Swedish")]  # fmt: skip
    records = [
        {
            "case_id": number, "neighborhood_prompts": ["Berlin is a city in"],
            "paraphrase_prompts": [f"So {prompt.replace('{}', subject)}"],
            "requested_rewrite": {"prompt": prompt, "subject": subject, "relation_id": "P1",
                                  "target_new": {"str": new}, "target_true": {"str": true}},
        }
        for number, (prompt, subject, new, true) in enumerate(edits)
    ]  # fmt: skip
    (folder / "facts.json").write_text(json.dumps(records))
    return [
        "fit", f"--model.name={folder / 'model'}", "--model.layers=[1,2]", "--model.dtype=float32",
        "--model.method.init_args.null_space_threshold=10.0", f"--model.statistics.corpus={folder / 'corpus.txt'}",
        "--model.statistics.tokens=10", f"--model.statistics.cache_dir={folder / 'cache'}", "--model.contexts=1",
        "--model.evaluation.keep_unedited=false",  # each run is to come to every stage
        "--model.targets.steps=2", "--model.targets.anchor=true", "--model.evaluation.perplexity_tokens=64",
        "--model.evaluation.protocols=[teacher_forced]", "--model.evaluation.cases=1",
        "--data.name=counterfact", f"--data.path={folder / 'facts.json'}", "--data.batch_size=1",
        "--trainer.val_check_interval=1", "--trainer.accelerator=cpu", "--checkpoints.max_overhead=1", "--quiet=true",
    ]  # fmt: skip


@pytest.fixture
def command(monkeypatch, capsys, signals_heeded):
    """Run a command line in this process; returns its status and what it says."""

    def run(args):
        monkeypatch.setenv("WANDB_MODE", "disabled")
        for module in ("sphere_pl.report", "sphere_pl.run.live"):  # drawing has its own tests, and takes long
            monkeypatch.setattr(f"{module}.write_report", lambda *_: None)
        monkeypatch.setattr(sys, "argv", ["sphere_pl", *args])
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
        return status, capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def undisturbed(base, tmp_path_factory):
    """What the run leaves that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        patch.setattr(sys, "argv", ["sphere_pl", *base, f"--run_dir={folder / 'run'}"])
        main()
    return left(folder / "run")


def left(run):
    """All that a run leaves but for measured times and memory."""
    with (run / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]
    results = json.loads((run / "results.json").read_text())
    measured = ("seconds_per_edit", "seconds_total", "seconds_saving", "peak_memory_bytes", "edit_log_sha256")
    lines = [json.loads(line) for line in (run / "edits.jsonl").read_text().splitlines()]
    return {
        "weights": (run / "edited.safetensors").read_bytes(),
        "rows": rows,
        "results": {name: value for name, value in results.items() if name not in measured},
        "targets": (run / "targets.csv").read_text(),
        "edits": [{name: value for name, value in line.items() if name != "time"} for line in lines],
    }


@pytest.mark.parametrize(("stage", "kind"), PLACES, ids=lambda each: each)
def test_a_fault_ends_a_run_with_one_message_and_it_goes_on_unchanged(
    command, fault, base, undisturbed, tmp_path, monkeypatch, stage, kind
):
    run = tmp_path / "a run"
    calls = fault(stage, kind, run)
    status, err = command([*base, f"--run_dir={run}"])
    assert calls
    monkeypatch.undo()
    said = [line for line in err.splitlines() if line and "WARNING" not in line]
    assert status == STATUS[kind], err
    assert "Traceback" not in err
    assert len(re.findall(r"^error: |^Interrupted", err, re.MULTILINE)) == 1
    assert len(said) <= 5
    if kind in {"memory", "disk", "twice"}:
        assert STAGES[stage][2] in err
    if kind == "memory":
        assert err.startswith("error: Out of memory while ")
    if kind == "disk":
        assert err.startswith("error: The disk is full while ")
    assert not list(run.rglob("*.part"))
    advised = re.search(r"Resume with: python -m sphere_pl (.*)$", err, re.MULTILINE)
    if advised:
        again = shlex.split(advised[1])
        assert again == ["fit", "--run_dir", str(run), "--ckpt_path", "last"]
    else:
        assert stage in BEFORE_THE_FIRST_CHECKPOINT
        again = [*base, f"--run_dir={run}", "--ckpt_path=last"]
    assert command(again)[0] == 0
    assert left(run) == undisturbed


SHORT_OF_MEMORY = """
import resource, sys, psutil
import torch
from sphere_pl.editing import problem
from sphere_pl.commands import main

original, calls = problem.optimize_targets, []

def optimize_targets(*args):
    calls.append(1)
    if len(calls) == 2:  # what is left is not enough for anything
        limit = psutil.Process().memory_info().vms + 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        torch.empty(2**24)
    return original(*args)

problem.optimize_targets = optimize_targets
main()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits a process's memory")
def test_a_process_under_a_memory_limit_says_what_would_need_less(base, tmp_path):
    command = [sys.executable, "-c", SHORT_OF_MEMORY, *base, f"--run_dir={tmp_path / 'run'}", "--model.contexts=4"]
    environment = {**os.environ, "WANDB_MODE": "disabled"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == OUT_OF_MEMORY, ended.stderr
    error = ended.stderr[ended.stderr.index("error: ") :]
    assert "Traceback" not in ended.stderr
    assert error.startswith("error: Out of memory while optimising target values: ")
    assert re.search(r"expected to need about \S+ GB .* 0.00 GB are free on cpu", error)
    levers = [error.index(f"--{name}") for name in ("model.targets.max_tokens", "model.dtype", "model.contexts")]
    assert levers == sorted(levers)
    assert "1 batch of 1 edit is saved. Resume with: python -m sphere_pl fit --run_dir" in error


def test_a_report_that_cannot_be_drawn_for_want_of_space_is_no_reason_to_stop(
    command, base, undisturbed, tmp_path, monkeypatch, caplog
):
    from sphere_pl.run.live import LiveReport

    original = LiveReport._write

    def full(self, *args, **kwargs):
        def draw(*_):
            raise OSError(28, "No space left on device")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sphere_pl.run.live.write_report", draw)
            original(self, *args, **kwargs)

    monkeypatch.setattr(LiveReport, "_write", full)
    status, err = command([*base, f"--run_dir={tmp_path / 'run'}"])
    assert status == 0, err
    assert caplog.text.count("report.html could not be written") == 1
    assert left(tmp_path / "run") == undisturbed


def test_without_a_checkpoint_no_command_is_advised_and_elsewhere_the_file_is_named(command, fault, base, tmp_path):
    run = tmp_path / "run"
    fault("validation", "memory", run)
    status, err = command([*base, f"--run_dir={run}", "--checkpoints.every_n_batches=0"])
    assert status == OUT_OF_MEMORY
    assert "the same command with --overwrite begins again" in err
    assert "Go on with" not in err
    folder = tmp_path / "else where"
    fault("solve", "memory", run)
    _, err = command([*base, f"--run_dir={run}", f"--checkpoints.folder={folder}", "--overwrite"])
    last = shlex.quote(str(folder / "batch-000001.safetensors"))
    assert err.endswith(f"Resume with: python -m sphere_pl fit --run_dir {run} --ckpt_path {last}\n")
