"""Runs that were edited on by hand, as the commands on a run find them."""

import json
from pathlib import Path

import pytest

from sphere_pl.history.by_hand import lasting, newest_run, warn_of_session


@pytest.fixture
def served(tmp_path):
    """A run that was served, and the run that the session has made."""
    state = tmp_path / "run" / "serving" / "00003"
    state.mkdir(parents=True)
    for folder in (tmp_path / "run", state):
        (folder / "edits.jsonl").touch()
    (state.parent / "current.json").write_text(json.dumps({"state": state.name}))
    return tmp_path / "run", state


def test_a_session_is_named_by_its_folder_and_a_run_by_its_own(served):
    run, state = served
    assert newest_run(run / "serving") == newest_run(state) == state
    assert newest_run(run) == run
    assert newest_run(Path("nowhere")) == Path("nowhere")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"state": null}', '{"state": "00009"}', '{"state": 3}'])
def test_a_session_without_a_run_is_a_folder_like_others(served, text, caplog):
    run, _ = served
    (run / "serving" / "current.json").write_text(text)
    assert newest_run(run / "serving") == run / "serving"
    warn_of_session(run)
    assert not caplog.records


def test_edits_by_hand_that_a_command_leaves_out_are_said(served, caplog):
    run, state = served
    warn_of_session(state)
    warn_of_session(run / "serving")
    assert not caplog.records
    warn_of_session(run)
    assert f"Name {run / 'serving'}" in caplog.text


def test_what_is_made_of_a_state_lies_where_no_edit_deletes_it(served):
    run, state = served
    assert lasting(state) == lasting(run) == run
