"""The estimate of memory against what tensors really take."""

from pathlib import Path

import pytest
import torch

from sphere_pl.data.datamodule import EditLoader
from sphere_pl.editor import SequentialEditor
from sphere_pl.methods import MEMIT, UltraEdit
from sphere_pl.methods.alphaedit import AlphaEdit
from sphere_pl.preflight import Batch, Shapes, estimate, need, shapes_of

SHAPES = Shapes(1000, 2, 4, 32, 48, 32, 64, 400, (1, 2))
BATCH = Batch(10, 3, 12, 6, 2, 4096)


def bytes_of(state):
    return sum(tensor.numel() * tensor.itemsize for tensor in state.values())


@pytest.mark.parametrize("method", [AlphaEdit(10.0, 1e3), MEMIT(), MEMIT(remember_past=True), UltraEdit()])
def test_a_methods_state_never_takes_more_than_it_says_and_not_much_less(method):
    weight, moment = torch.zeros(20, 40), torch.eye(40)
    state, most = method.initial_state(weight, moment), 0
    for _ in range(20):
        most = max(most, bytes_of(state))
        if not isinstance(method, UltraEdit):
            state = method.remember(torch.randn(3, 40), state)
    stated = method.state_bytes(20, 40)
    assert 0.5 * stated < most <= 1.01 * stated + 64


def test_the_shapes_are_those_of_the_model(tiny_lm, family):
    lm = tiny_lm(family)
    sites = lm.sites([1, 2])
    shapes = shapes_of(lm.model, sites)
    assert (shapes.output, shapes.width) == tuple(sites[0].read().shape)
    assert (shapes.layers, shapes.hidden, shapes.edited) == (4, 32, (1, 2))
    assert shapes.parameters == sum(parameter.numel() for parameter in lm.model.parameters())


def test_more_edits_contexts_and_tokens_need_more_up_to_what_one_pass_may_hold():
    small = need(SHAPES, BATCH, AlphaEdit()).targets
    assert need(SHAPES, BATCH._replace(requests=20), AlphaEdit()).targets == 2 * small
    bounded = need(SHAPES, BATCH._replace(max_tokens=60), AlphaEdit()).targets
    assert bounded < small
    assert need(SHAPES, BATCH, UltraEdit()).targets == 0
    assert need(SHAPES, BATCH, UltraEdit()).moments == 0


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

    text = (Path(__file__).parent.parent / "docs" / "speed.md").read_text(encoding="utf-8")
    assert table() in text
