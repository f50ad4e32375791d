"""A run whose facts stand in a list: no weight moves, and every command has its facts."""

import json
from argparse import Namespace

import pytest
import torch

from sphere_callbacks import HypersphericalEnergy, RelativeMask, SpectrumRestraint
from sphere_pl.api.checks import check_edits_weights
from sphere_pl.commands.export import main as export
from sphere_pl.commands.predict import main as predict
from sphere_pl.commands.undo import main as undo
from sphere_pl.commands.verify import main as verify
from sphere_pl.commands.which_run import load_state
from sphere_pl.errors import UserError
from sphere_pl.history.continuation import open_earlier
from sphere_pl.history.fact_folder import read_facts
from sphere_pl.methods import SCR, AlphaEdit
from tests.saving import SaveAt

OPTIONS = {"ckpt_path": None, "at": None, "model": None, "cache_dir": None, "trust_remote_code": False}
QUESTION = "The capital of France is"


@pytest.fixture
def run(fit):
    return fit(method="SCR")


def state_of(folder, **given):
    return load_state(Namespace(run_dir=folder, device=None, device_map=None, **{**OPTIONS, **given}))


@pytest.mark.parametrize("callbacks", [[], [RelativeMask(keep=0.4), SpectrumRestraint(), HypersphericalEnergy()]])
def test_no_weight_moves_under_any_callback(fit, callbacks):
    run = fit(method="SCR", callbacks=callbacks, sphere={"strength": 0.5})
    base = state_of(run.folder).base.weights
    assert all(torch.equal(run.live[name], weight) for name, weight in base.items())
    assert run.editor.edits_seen == 4
    assert len(run.editor.lm.reading.facts) == 4


@pytest.mark.parametrize("when", ["layer", "step"])
def test_a_projection_on_both_sides_and_after_the_loop_leaves_zeros_alone(fit, when):
    run = fit(method="SCR", sphere={"strength": 1.0, "sides": "both", "when": when})
    assert all(torch.equal(run.live[name], w) for name, w in state_of(run.folder).base.weights.items())


def test_the_unedited_model_reads_nothing(run):
    state = state_of(run.folder)
    assert state.lm.read([QUESTION]) == [QUESTION]
    state.edit()
    assert state.lm.read([QUESTION]) == [f"{QUESTION} Berlin\n{QUESTION}"]


def test_an_earlier_state_reads_the_facts_that_it_had(run):
    state = state_of(run.folder, at=2)
    state.edit()
    assert state.lm.reading.facts == ["The capital of France is Berlin", "Rome is a city in Norway"]


def test_a_run_that_is_resumed_reads_all_facts(fit, tmp_path):
    fit("first", method="SCR", last=[SaveAt(1, tmp_path / "half.ckpt")], max_steps=1)
    resumed = fit("first", method="SCR", ckpt_path=str(tmp_path / "half.ckpt"))
    assert len(resumed.editor.lm.reading.facts) == 4


def test_undo_takes_a_fact_from_the_list_and_is_exact(run, tmp_path, capsys):
    (run.folder / "results.json").write_text("{}")
    undo(["--run_dir", str(run.folder), "--out", str(tmp_path / "less"), "France"])
    assert "Exact" in capsys.readouterr().out
    state = state_of(tmp_path / "less")
    state.edit()
    assert [fact[:4] for fact in state.lm.reading.facts] == ["Rome", "The ", "Beca"]


def test_the_list_is_exported_and_asked(run, tmp_path, capsys):
    folder = tmp_path / "list"
    export(["--run_dir", str(run.folder), "--out", str(folder)])
    assert not list(folder.glob("*.safetensors"))
    assert [each.target_new for each in read_facts(folder).requests][:2] == ["Berlin", "Norway"]
    model = run.editor.name
    out = tmp_path / "answers.json"
    predict(["--folder", str(folder), "--model", model, "--prompt", QUESTION, "--max_tokens", "3", "--out", str(out)])
    predict(["--run_dir", str(run.folder), "--prompt", QUESTION, "--max_tokens", "3"])
    assert json.loads(out.read_text()) == json.loads((run.folder / "predictions.json").read_text())
    assert "no weight is edited" in (folder / "README.md").read_text()
    capsys.readouterr()
    with pytest.raises(UserError, match="no adapter or delta"):
        export(["--run_dir", str(run.folder), "--out", str(tmp_path / "a"), "--adapter"])


def test_a_list_that_was_changed_is_refused(run, tmp_path):
    export(["--run_dir", str(run.folder), "--out", str(tmp_path / "list")])
    (tmp_path / "list" / "facts.json").write_text("[]")
    with pytest.raises(UserError, match="no list of facts"):
        read_facts(tmp_path / "list")


def test_a_list_and_edited_weights_do_not_continue_each_other(fit, run):
    (run.folder / "results.json").write_text(json.dumps({"edits": 4}))
    earlier = open_earlier(run.folder)
    names = [matrix.name for matrix in earlier.history.header.matrices]
    earlier.check_base(earlier.fingerprint, names, "tiny", SCR().retrieval)
    with pytest.raises(UserError, match="do not continue each other"):
        earlier.check_base(earlier.fingerprint, names, "tiny", AlphaEdit().retrieval)


def test_a_model_that_is_returned_alone_is_refused():
    check_edits_weights(AlphaEdit())
    with pytest.raises(UserError, match="edits no weight"):
        check_edits_weights(SCR())


def test_a_run_folder_is_verified(run, capsys):
    verify(["--run_dir", str(run.folder)])
    assert "no edited.safetensors; the log gives them back" in capsys.readouterr().out
