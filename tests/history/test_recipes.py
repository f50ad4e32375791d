"""How a run turned keys and residuals into updates, read from its configuration and its log."""

import json

import pytest

from sphere_callbacks import RelativeMask, SparseProjection
from sphere_pl.errors import UserError
from sphere_pl.history.entries import Ancestor
from sphere_pl.history.recipes import Segment, build_recipe, segments
from sphere_pl.history.saved import SavedRun


def test_a_runs_method_and_projection_are_built_as_its_configuration_says(fit):
    (only,) = segments(SavedRun.open(fit(method="MEMIT", sphere={"strength": 0.8}).folder))
    built = build_recipe(only)
    assert built.method.name == "MEMIT"
    (projection,) = built.callbacks
    assert isinstance(projection, SparseProjection)
    assert projection.strength == 0.8


def test_a_run_without_configuration_refuses(fit):
    run = fit()
    (run.folder / "config.yaml").unlink()
    (only,) = segments(SavedRun.open(run.folder))
    with pytest.raises(UserError, match=r"config\.yaml"):
        build_recipe(only)


def test_a_class_that_is_not_there_any_more_is_the_users_mistake():
    with pytest.raises(UserError, match=r"here/config\.yaml could not be read"):
        build_recipe(Segment(1, {"method": {"class_path": "no_such_module.Mine"}}, "here/config.yaml"))


def test_runs_of_a_chain_that_edited_in_one_way_are_one_segment(fit):
    run = SavedRun.open(fit().folder)
    other = {**run.recipe, "method": {"class_path": "sphere_pl.methods.MEMIT"}}
    chain = [Ancestor("first", 1, 1, recipe=other), Ancestor("second", 1, 1, recipe=other)]
    chain += [Ancestor("third", 2, 2, recipe=run.recipe)]
    run.history.header.ancestors.extend(chain)
    assert [(part.last, part.where) for part in segments(run)] == [
        (1, "second"),
        (len(run.history.entries), str(run.folder / "config.yaml")),
    ]


def test_what_the_log_says_of_a_run_is_not_changed_by_building_it(fit):
    recipe = SavedRun.open(fit(callbacks=[RelativeMask(keep=0.4)]).folder).recipe
    written = json.dumps(recipe)
    build_recipe(Segment(1, recipe, "here"))
    assert json.dumps(recipe) == written
