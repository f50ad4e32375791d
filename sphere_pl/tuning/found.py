"""Settings for a model that has none: found once, checked on a few built-in facts, and kept."""

import copy
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from sphere_pl.data.datamodule import built_in_facts
from sphere_pl.data.request import EditRequest
from sphere_pl.editing.kept_states import arguments_of
from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.editing.prepared import KnownStates
from sphere_pl.editing.target_settings import LEARNING_RATE, TargetSettings
from sphere_pl.errors import UserError
from sphere_pl.methods.base import Method
from sphere_pl.model.embedded import cache_folder
from sphere_pl.model.fingerprint import fingerprint
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.process.failures import doing
from sphere_pl.progress import Track
from sphere_pl.storage.addresses import address_of
from sphere_pl.storage.files import write_text
from sphere_pl.tuning.rules import layer_at, layers_by_depth, moved
from sphere_pl.tuning.trial import Bench, Outcome

log = logging.getLogger(__name__)
_FORMAT = 3  # of what is kept; another format is found again
_STRONGER, _WEAKER = 3.0, 1 / 3  # times the usual regulariser


@dataclass(frozen=True)
class AutoSettings:
    """How settings are found for a model that has none; see docs/models.md.

    Args:
        seconds: How long candidates are tried out. The first is tried whatever it takes, and no further one is begun
            that would end too late.
        facts: How many built-in facts are edited for it.
        cache_dir: Where what was found is kept; the user's cache folder if None.
    """

    seconds: float = 60.0
    facts: int = 10
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.seconds > 0:
            raise UserError(
                f"`auto.seconds={self.seconds}` must be above 0. To have nothing tried out, choose the layers "
                "yourself: --model.layers=[4,5,6]."
            )
        if self.facts < 1:
            raise UserError(f"`auto.facts={self.facts}` must be at least 1.")


class Found(NamedTuple):
    """Settings found for a model.

    Attributes:
        layers: Blocks to edit.
        learning_rate: That of the targets, in units of the state.
        regularizer: How many times the usual the method's regulariser is, if it was left open.
        outcome: What they reached on the built-in facts; None where nothing was tried out.
        tried: How many candidates were.
        seconds: What that took.
        prepared: The method's states for the layers that were tried last, which the run need not find again.
    """

    layers: list[int]
    learning_rate: float | None = None
    regularizer: float = 1.0
    outcome: Outcome | None = None
    tried: int = 0
    seconds: float = 0.0
    prepared: KnownStates | None = None

    def weighed(self, given: Method) -> dict[str, float]:
        """The method's argument for its regulariser, where the user has left it open."""
        if given.open_regularizer is None:
            return {}
        name, usual = given.open_regularizer
        return {name: float(f"{usual * self.regularizer:.3g}")}

    def method(self, given: Method) -> Method:
        """The method with that."""
        found = copy.copy(given)
        for name, value in self.weighed(given).items():
            setattr(found, name, value)
        return found

    def targets(self, given: TargetSettings) -> TargetSettings:
        """The settings of the targets, where the user has left the learning rate open."""
        if self.learning_rate is None or not given.rate_is_open:
            return given
        return replace(given, learning_rate=self.learning_rate, units="state")

    def lines(self) -> str:
        """What was found and how it did, in two lines."""
        layers = ",".join(map(str, self.layers))
        if self.outcome is None:
            return f"Layers for this model: [{layers}], by its depth. Choose others with --model.layers."
        rate = f", learning rate {self.learning_rate:g} of the state" if self.learning_rate else ""
        weight = "" if self.regularizer == 1 else f", {self.regularizer:.3g} times the usual regularizer"
        tried = f"{self.tried} tried in {self.seconds:.0f} s" if self.seconds else "kept from an earlier run"
        return (
            f"Settings found for this model: layers [{layers}]{rate}{weight} ({tried}).\n"
            f"On built-in facts: {self.outcome.line()}. Choose others with --model.layers; search longer with "
            "`python -m sphere_pl tune`."
        )


@doing("finding settings for the model")
def find_settings(
    lm: LanguageModel,
    method: Method,
    targets: TargetSettings,
    statistics: StatisticsSettings,
    contexts: tuple[int, int],
    settings: AutoSettings,
    track: Track,
) -> Found:
    """Find layers for a model, how strong its regulariser is, and Adam's learning rate where Adam is chosen.

    Methods that edit one layer, or that optimise no targets, take a layer by its depth.

    Args:
        lm: The unedited language model; it is unedited afterwards.
        method: The method that shall edit.
        targets: How targets are optimised; a learning rate that is set there stays.
        statistics: Where second moments come from.
        contexts: How many context templates, and tokens of each.
        settings: How long to try.
        track: Shows progress.
    """
    editable = lm.editable_layers()
    if method.depth is not None:
        return Found(layer_at(editable, lm.n_layers, method.depth))
    if not method.needs_targets:
        return Found(layers_by_depth(editable, lm.n_layers))
    asked = {"targets": repr(targets), "contexts": list(contexts), "facts": settings.facts, "method": method.name}
    arguments = arguments_of(method)  # what cannot be compared is found each time
    path = None if arguments is None else _kept_at(lm, settings, {**asked, "arguments": arguments})
    kept = None if path is None else _read(path, editable)
    if kept is not None:
        return kept
    bench = Bench.set_up(lm, method, statistics, contexts, trial_facts(settings.facts), track)
    found = _search(bench, targets, editable, settings.seconds)
    if path is not None:
        _keep(found, path)
    return found


def trial_facts(count: int) -> list[EditRequest]:
    """Built-in facts, from the end of the set and spread over its relations."""
    everything = built_in_facts()
    rest = everything[len(everything) // 2 :]
    step = max(1, len(rest) // count)
    return rest[::-step][:count]


def _search(bench: Bench, targets: TargetSettings, editable: Sequence[int], seconds: float) -> Found:
    """Try candidates until one is good or the time is over; the best of them."""
    begun, latest = time.monotonic(), 0.0
    tried: list[Found] = []
    open_weight = bench.method.open_regularizer is not None
    for candidate in _candidates(bench.lm.n_layers, editable, not targets.rate_is_open, open_weight):
        start = time.monotonic()
        if tried and start - begun + latest > seconds:
            break
        outcome = bench.try_out(candidate.layers, candidate.targets(targets), candidate.method(bench.method))
        tried.append(candidate._replace(outcome=outcome))
        latest = time.monotonic() - start
        if outcome.good:
            break
    best = max(tried, key=_score)  # the first of equals
    return best._replace(tried=len(tried), seconds=time.monotonic() - begun, prepared=bench.kept.prepared)


def _score(found: Found) -> float:
    return 0.0 if found.outcome is None else found.outcome.score


def _candidates(n_layers: int, editable: Sequence[int], fixed_rate: bool, open_weight: bool) -> Iterator[Found]:
    """What is tried: what does in most models first, then what can be tried with the same targets."""
    usual = layers_by_depth(editable, n_layers)
    further = max(1, round(0.07 * n_layers))
    inside = [layer for layer in editable if layer < n_layers - 1] or list(editable)
    deeper, deepest = (moved(inside, usual[0] + steps * further, len(usual)) for steps in (1, 2))
    rate, slower, faster = (None,) * 3 if fixed_rate else (LEARNING_RATE, LEARNING_RATE / 2, 2 * LEARNING_RATE)
    weights = (_STRONGER, _WEAKER) if open_weight else ()
    candidates = [Found(usual, rate), *(Found(usual, rate, weight) for weight in weights), Found(usual, slower)]
    candidates += [Found(deeper, rate), Found(usual, faster), Found(deepest, rate)]
    seen: list[Found] = []
    for candidate in candidates:
        if candidate not in seen:
            seen.append(candidate)
            yield candidate


def _kept_at(lm: LanguageModel, settings: AutoSettings, asked: dict[str, Any]) -> Path:
    """The file for a model and what is asked of it; another model of the same name has another."""
    name = address_of({"format": _FORMAT, "model": fingerprint(lm), **asked})
    return cache_folder(settings.cache_dir) / "settings" / f"{name}.json"


def _read(path: Path, editable: Sequence[int]) -> Found | None:
    """What is kept in a file; a file that holds something else is found again, and said."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        outcome = Outcome(**kept["outcome"])
        found = Found([int(layer) for layer in kept["layers"]], kept["learning_rate"], kept["regularizer"], outcome)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("The kept settings %s cannot be used (%s); they are found again.", path, error)
        return None
    if not found.layers or not set(found.layers) <= set(editable):
        log.warning("The kept settings %s name layers that this model does not have; they are found again.", path)
        return None
    return found


def _keep(found: Found, path: Path) -> None:
    """Keep what was found; a cache that cannot be written is said and changes nothing."""
    kept = {name: getattr(found, name) for name in ("layers", "learning_rate", "regularizer")}
    kept["outcome"] = None if found.outcome is None else found.outcome.plain()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(kept, indent=1) + "\n")
    except OSError as error:
        log.warning("What was found could not be kept in %s (%s): it is found again next time.", path, error)
