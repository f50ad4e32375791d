"""How the runs of a chain turned keys and residuals into updates, as their logs and configurations say it."""

import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback

from sphere_callbacks import SparseProjection
from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.errors import UserError
from sphere_pl.history.saved import SavedRun
from sphere_pl.methods.base import Method


class Recipe(NamedTuple):
    """How a run turned keys and residuals into updates.

    Attributes:
        method: The method.
        callbacks: What its updates passed through, in this order.
        statistics: Which text its second moments come from.
    """

    method: Method
    callbacks: list[Callback]
    statistics: StatisticsSettings


class Segment(NamedTuple):
    """Batches in a row that were edited in one way.

    Attributes:
        last: Number of the last entry.
        recipe: How, as the log or config.yaml say it.
        where: What says it, for messages.
    """

    last: int
    recipe: dict[str, Any]
    where: str


def same_recipe(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two runs turned keys and residuals into updates in one way."""
    return json.dumps(first, sort_keys=True, default=str) == json.dumps(second, sort_keys=True, default=str)


def segments(run: SavedRun) -> list[Segment]:
    """The runs of a chain; those in a row that were carried out in one way are one."""
    header, total = run.history.header, len(run.history.entries)
    own = Segment(total, run.recipe, str(run.folder / "config.yaml"))
    parts = [Segment(each.entries, each.recipe, each.run_dir) for each in header.ancestors] + [own]
    found: list[Segment] = []
    for part in parts:
        if found and same_recipe(found[-1].recipe, part.recipe):
            found[-1] = part
        else:
            found.append(part)
    return found


def build_recipe(segment: Segment) -> Recipe:
    """Build the method and the callbacks of some batches.

    Raises:
        UserError: If nothing says what they were, or something named cannot be built.
    """
    if not segment.recipe.get("method"):
        raise UserError(
            f"{segment.where} does not say with which method the run edited: edits cannot be taken out. Restore the "
            "run's config.yaml from a copy, or run `fit` again on data without them."
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--method", type=Method)
    parser.add_argument("--statistics", type=StatisticsSettings)
    parser.add_argument("--callbacks", type=list[Callback])
    parser.add_class_arguments(SparseProjection, "projection")
    try:
        built = parser.instantiate_classes(parser.parse_object(deepcopy(segment.recipe)))  # it is changed
    except Exception as error:  # importing and building a class raises what it likes
        said = str(error).rstrip(".")
        raise UserError(
            f"{segment.where} could not be read: {said}. Install what it names, or restore it from a copy."
        ) from error
    return Recipe(built.method, [*filter(_acts_on_updates, built.callbacks), built.projection], built.statistics)


def _acts_on_updates(callback: Callback) -> bool:
    return type(callback).on_before_optimizer_step is not Callback.on_before_optimizer_step
