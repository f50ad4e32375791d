"""A longer search for a model's settings: Optuna's, in a journal that processes share and that can be resumed."""

import logging
import time
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sphere_pl.editing.target_settings import LEARNING_RATE, TargetSettings
from sphere_pl.errors import UserError
from sphere_pl.methods import AlphaEdit
from sphere_pl.methods.alphaedit import RELATIVE_RIDGE
from sphere_pl.progress import Track
from sphere_pl.storage.files import write_atomically
from sphere_pl.tuning.rules import layers_by_depth, moved
from sphere_pl.tuning.trial import Bench, Outcome

if TYPE_CHECKING:
    from optuna import Study, Trial

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """Settings that are tried together.

    Attributes:
        layers: Blocks to edit.
        learning_rate: That of the targets, in units of the state.
        stop_loss: Where a target has converged.
        kl_weight: Weight of the divergence on the subject.
        relative_ridge: AlphaEdit's.
        null_space_share: AlphaEdit's.
    """

    layers: list[int]
    learning_rate: float
    stop_loss: float
    kl_weight: float
    relative_ridge: float
    null_space_share: float

    @property
    def method(self) -> AlphaEdit:
        """The method."""
        return AlphaEdit(relative_ridge=self.relative_ridge, null_space_share=self.null_space_share)

    @property
    def targets(self) -> TargetSettings:
        """How targets are optimised."""
        rate, stop, kl = self.learning_rate, self.stop_loss, self.kl_weight
        return TargetSettings(learning_rate=rate, units="state", stop_loss=stop, kl_weight=kl)

    def section(self) -> dict[str, Any]:
        """The `model` section of a configuration file."""
        own = {"relative_ridge": self.relative_ridge, "null_space_share": self.null_space_share}
        method = {"class_path": "sphere_pl.methods.AlphaEdit", "init_args": own}
        targets = {name: value for name, value in asdict(self.targets).items() if value is not None}
        return {"layers": self.layers, "method": method, "targets": targets}


def candidate_of(parameters: dict[str, Any], editable: list[int], n_layers: int) -> Candidate:
    """The settings that a trial's parameters stand for."""
    inside = [layer for layer in editable if layer < n_layers - 1] or editable
    rest = dict(parameters)
    layers = moved(inside, rest.pop("first_layer"), min(rest.pop("count"), len(inside)))
    return Candidate(layers, **rest)


def open_study(journal: Path) -> "Study":
    """The study of a journal; a new one if there is none.

    Raises:
        UserError: If Optuna is not installed, or the journal is none.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("`tune` searches with Optuna. Install it: pip install 'sphere-pl[tune]'.") from error
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal.parent.mkdir(parents=True, exist_ok=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
            sampler = optuna.samplers.TPESampler(n_startup_trials=6, constant_liar=True)
            return optuna.create_study(
                study_name="settings", storage=storage, sampler=sampler, direction="maximize", load_if_exists=True
            )
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{journal} is no journal of `tune` ({error}). Delete it, or name another with --journal."
        ) from error


def search(study: "Study", bench: Bench, seconds: float, picture: Path, track: Track) -> None:
    """Try candidates until the time is over; the picture is drawn again after each.

    Args:
        study: Where trials are kept.
        bench: The model, and the facts that are edited.
        seconds: How long to search.
        picture: A PNG.
        track: Shows progress.
    """
    editable, n_layers = bench.lm.editable_layers(), bench.lm.n_layers
    if not study.trials:
        study.enqueue_trial(_usual(editable, n_layers))
    end = time.monotonic() + seconds
    # How many trials there will be is not known.
    for _ in track(_until(end), "trials", 0):
        study.optimize(partial(_try, bench, editable, n_layers), n_trials=1)
        draw(study, picture)


def _until(end: float) -> Any:
    number = 0
    while time.monotonic() < end:
        yield number
        number += 1


def _usual(editable: list[int], n_layers: int) -> dict[str, Any]:
    """What is taken without a search."""
    layers = layers_by_depth(editable, n_layers)
    targets, method = TargetSettings(), AlphaEdit()
    return {
        "first_layer": layers[0], "count": len(layers), "learning_rate": LEARNING_RATE,
        "stop_loss": targets.stop_loss, "kl_weight": targets.kl_weight,
        "relative_ridge": RELATIVE_RIDGE, "null_space_share": method.null_space_share,
    }  # fmt: skip


def _try(bench: Bench, editable: list[int], n_layers: int, trial: "Trial") -> float:
    last = max(0, n_layers // 2)
    parameters = {
        "first_layer": trial.suggest_int("first_layer", 0, last),
        "count": trial.suggest_int("count", 1, min(8, len(editable))),
        "learning_rate": trial.suggest_float("learning_rate", 0.02, 0.3, log=True),
        "stop_loss": trial.suggest_float("stop_loss", 0.1, 0.7),
        "kl_weight": trial.suggest_float("kl_weight", 0.03, 1.0, log=True),
        "relative_ridge": trial.suggest_float("relative_ridge", 0.01, 3.0, log=True),
        "null_space_share": trial.suggest_float("null_space_share", 0.5, 0.95),
    }
    candidate = candidate_of(parameters, editable, n_layers)
    outcome = bench._replace(method=candidate.method).try_out(candidate.layers, candidate.targets)
    trial.set_user_attr("outcome", outcome.plain())
    return outcome.score


def best_of(study: "Study") -> tuple[dict[str, Any], Outcome]:
    """The parameters of the best trial, and what it reached.

    Raises:
        UserError: If no trial was finished.
    """
    done = [trial for trial in study.trials if trial.value is not None]
    if not done:
        raise UserError("No candidate could be tried out in the time given. Give more with --seconds.")
    best = max(done, key=lambda trial: trial.value or 0.0)
    return dict(best.params), Outcome(**best.user_attrs["outcome"])


def draw(study: "Study", picture: Path) -> None:
    """Draw the trials so far: each one's score, the best so far, and what they trade."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    done = [
        (trial.number, trial.value, trial.user_attrs["outcome"]) for trial in study.trials if trial.value is not None
    ]
    if not done:
        return
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    numbers, scores = [each[0] for each in done], [each[1] for each in done]
    left.plot(numbers, scores, "o", color="#8a8a8a", label="one candidate")
    left.step(numbers, [max(scores[: place + 1]) for place in range(len(scores))], where="post", label="best so far")
    left.set(xlabel="candidate", ylabel="score", ylim=(0, 1))
    left.legend(loc="lower right", frameon=False)
    spread = right.scatter(
        [each[2]["agreement"] for each in done], [each[2]["generalization"] for each in done],
        c=[each[2]["efficacy"] for each in done], vmin=0, vmax=1, cmap="viridis",
    )  # fmt: skip
    figure.colorbar(spread, ax=right, label="efficacy")
    right.set(xlabel="neighborhood agreement", ylabel="generalization", xlim=(0, 1.02), ylim=(0, 1.02))
    write_atomically(picture, lambda path: figure.savefig(path, format="png", dpi=120))


def rounded(candidate: Candidate) -> Candidate:
    """The same with three significant digits: more would say more than was found out."""
    short: dict[str, Any] = {
        name: float(f"{value:.3g}") if isinstance(value, float) else value for name, value in asdict(candidate).items()
    }
    return Candidate(**short)
