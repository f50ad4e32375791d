"""The estimate of memory against what tensors really take."""

from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from sphere_pl.data.datamodule import EditLoader
from sphere_pl.editing.memory_estimate import (
    Batch,
    Need,
    Shapes,
    capacity,
    fitting_tokens,
    largest_pass,
    need,
    shapes_of,
)
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editor import SequentialEditor
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.methods import EMMET, MEMIT, ROME, KnownProblem, UltraEdit
from sphere_pl.methods.alphaedit import AlphaEdit
from sphere_pl.run.preflight import estimate

SHAPES = Shapes(1000, 2, 4, 32, 48, 32, 64, 400, (1, 2))
BATCH = Batch(10, 3, 12, 6, 2, 10 * 3 * 6)


def bytes_of(state):
    return sum(tensor.numel() * tensor.itemsize for tensor in state.values())


@pytest.mark.parametrize(
    "method", [AlphaEdit(10.0, 1e3), MEMIT(), MEMIT(remember_past=True), UltraEdit(), EMMET(ridge=0.01), ROME()]
)
def test_a_methods_state_never_takes_more_than_it_says_and_not_much_less(method):
    weight, moment = torch.zeros(20, 40), torch.eye(40)
    state, most = method.initial_state(weight, moment), 0
    for _ in range(20):
        most = max(most, bytes_of(state))
        if not isinstance(method, UltraEdit):
            state = method.remember(KnownProblem(torch.randn(3, 40), torch.zeros(3, 20)), state)
    stated = method.state_bytes(20, 40)
    assert 0.5 * stated < most <= 1.01 * stated + 64


def test_the_shapes_are_those_of_the_model(tiny_lm, family):
    lm = tiny_lm(family)
    sites = lm.sites([1, 2])
    shapes = shapes_of(lm.model, sites)
    assert (shapes.output, shapes.width) == tuple(sites[0].read().shape)
    assert (shapes.layers, shapes.hidden, shapes.edited) == (4, 32, (1, 2))
    assert shapes.parameters == sum(parameter.numel() for parameter in lm.model.parameters())


def test_a_number_that_differs_between_layers_is_taken_where_it_is_largest(tiny_lm, monkeypatch):
    class Differing(type(tiny_lm().config)):
        per_layer_config = (SimpleNamespace(head_dim=8), SimpleNamespace(head_dim=16))

        def __getattribute__(self, name):
            if name == "head_dim":
                raise RuntimeError("'head_dim' is a per-layer attribute")
            return super().__getattribute__(name)

    lm = tiny_lm()
    expected = 2 * shapes_of(lm.model, lm.sites([1])).cached  # whose heads have 8 numbers
    monkeypatch.setattr(lm.model.config, "__class__", Differing)
    assert shapes_of(lm.model, lm.sites([1])).cached == expected


def test_more_edits_contexts_and_tokens_need_more_up_to_what_one_pass_may_hold():
    small = need(SHAPES, BATCH, AlphaEdit()).targets
    assert need(SHAPES, BATCH._replace(requests=20, in_pass=2 * BATCH.in_pass), AlphaEdit()).targets == 2 * small
    bounded = need(SHAPES, BATCH._replace(in_pass=60), AlphaEdit()).targets
    assert bounded < small
    assert need(SHAPES, BATCH, UltraEdit()).targets == 0
    assert need(SHAPES, BATCH, UltraEdit()).moments == 0


def test_what_is_held_elsewhere_leaves_room_for_one_matrix_and_the_next():
    here, there = (need(SHAPES, BATCH, MEMIT(), elsewhere) for elsewhere in (False, True))
    state = MEMIT().state_bytes(SHAPES.output, SHAPES.width)
    assert (here.states, there.states) == (2 * state, 0)
    assert there.moments < here.moments
    assert there.matrix >= 2 * state
    assert there.peak < here.peak


@pytest.mark.parametrize("method", [AlphaEdit(10.0, 0.6), MEMIT()])
def test_preparing_a_matrix_takes_no_more_than_the_method_says_and_not_much_less(method):
    moment = torch.diag(torch.linspace(0.1, 1, 300))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        method.initial_state(torch.zeros(20, 300), moment)
    now = most = 4 * 300**2  # the moment itself
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    # LAPACK's own room is not PyTorch's to count: two matrices of AlphaEdit's four.
    assert 0.5 * method.preparation_bytes(300) < most < 1.1 * method.preparation_bytes(300)


def test_tokens_in_one_pass_are_the_most_that_fit_and_leave_a_tenth_free():
    def need_of(tokens):
        return Need(1000, 0, 0, 0, 0, tokens)

    assert fitting_tokens(10**9, need_of) == 4096
    assert fitting_tokens(2300, need_of) == 1024  # 2,048 would take more than nine tenths
    assert fitting_tokens(2250, need_of) == fitting_tokens(2400, need_of)
    assert fitting_tokens(1, need_of) == 256


def test_the_largest_pass_is_that_of_the_fullest_group():
    assert largest_pass([8] * 100, 256) == 256
    assert largest_pass([8] * 10 + [100], 4096) == 100
    assert largest_pass([300], 256) == 300


def test_main_memory_is_all_there_is():
    assert capacity(torch.device("cpu")) > 10**8


class SaveFirst(L.Callback):
    """Keeps a checkpoint of the first batch."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 1:
            trainer.save_checkpoint(self.path)


@pytest.fixture
def edit(tiny_lm, requests, bare_trainer, tmp_path):
    def edit(tokens=None, **fit):
        scores = EvaluationSettings(perplexity_tokens=64)
        editor = SequentialEditor(UltraEdit(), [1], targets=TargetSettings(max_tokens=tokens), evaluation=scores)
        editor.lm = tiny_lm()
        trainer = bare_trainer(max_epochs=1, callbacks=[SaveFirst(tmp_path / "first.ckpt")])
        trainer.fit(editor, EditLoader(requests, batch_size=2), **fit)
        return editor.max_tokens

    return edit


def test_a_run_takes_as_many_tokens_as_memory_allows_unless_told(edit, monkeypatch):
    assert edit() == 4096
    assert edit(123) == 123
    monkeypatch.setattr("sphere_pl.editing.preparation.capacity", lambda device: 1)
    assert edit() == 256


def test_a_resumed_run_keeps_the_tokens_of_its_first_part(edit, monkeypatch, tmp_path):
    monkeypatch.setattr("sphere_pl.editing.preparation.capacity", lambda device: 1)
    edit()
    monkeypatch.undo()
    assert edit(ckpt_path=tmp_path / "first.ckpt") == 256


def test_the_line_names_the_peak_and_what_it_is_made_of():
    found = need(SHAPES._replace(parameters=8 * 10**9), BATCH, AlphaEdit())
    assert found.line().startswith(
        "Memory: about 16.0 GB beside Python and its libraries (model 16.00, edited matrices 0.00"
    )


def test_an_editor_is_judged_by_its_first_batch(tiny_lm, requests):
    editor = SequentialEditor(AlphaEdit(), layers=[1, 2], contexts=2)
    editor.lm = tiny_lm()
    editor.sites = editor.lm.sites([1, 2])
    found = estimate(editor, EditLoader(requests, batch_size=2))
    assert found.model == 4 * sum(parameter.numel() for parameter in editor.lm.model.parameters())
    assert found.targets > 0


def test_the_table_in_the_docs_is_the_one_that_the_formula_gives():
    from benchmarks.memory import table

    text = (Path(__file__).parents[2] / "docs" / "speed.md").read_text(encoding="utf-8")
    assert table() in text


def test_what_edits_where_is_said_and_whether_sphere_is_on():
    from types import SimpleNamespace

    from sphere_callbacks import SparseProjection
    from sphere_pl.run.preflight import method_line

    editor = SimpleNamespace(method=MEMIT(), layers=[1, 2])
    on, off = (SimpleNamespace(callbacks=[SparseProjection(strength=strength)]) for strength in (0.5, 0.0))
    assert method_line(editor, on) == "Method: MEMIT + SPHERE in layers 1, 2; SPHERE is on."
    assert "SPHERE is off (--config callbacks/sphere" in method_line(editor, off)
