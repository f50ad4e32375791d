"""Loggers of a run: metrics.csv in the run folder, and wandb that never stands in the way."""

import csv
import io
import logging
import netrc
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, WandbLogger
from typing_extensions import override

from sphere_pl.evaluation.metrics.table import metric_of
from sphere_pl.process.closing import Dispensable
from sphere_pl.process.failures import doing
from sphere_pl.storage.files import expanded, write_text

log = logging.getLogger(__name__)

# The summary of a run holds the last and the best value of these; of drift that is the smallest one.
_SCORES = ("val/", "batch/", "retention/", "abilities/")
_DRIFT = "drift/"
_LONGEST_TAG, _LONGEST_GROUP = 64, 128  # wandb refuses longer ones
_ONLINE = ("online", "shared", "run")


@dataclass(frozen=True)
class WandbSettings:
    """Where a run stands among others in wandb.

    Args:
        project: The project.
        entity: The user or team; your default one if None.
        group: Runs of one group are drawn as one curve with its spread; method, model and data if None.
        tags: More tags, beside method, model and data.
        adapter: Log the edits as a LoRA adapter, an artifact of the wandb run, at the end.
    """

    project: str = "sphere_pl"
    entity: str | None = None
    group: str | None = None
    tags: list[str] | None = None
    adapter: bool = False


class MetricsFile(Logger):
    """Every logged scalar in `metrics.csv`, one row a call, empty cells for what was not logged.

    A row is on disk as soon as it is logged, and a resumed run continues in the same file.

    Args:
        run_dir: The run folder.
    """

    def __init__(self, run_dir: str) -> None:
        super().__init__()
        self.path = Path(run_dir) / "metrics.csv"
        self._columns: list[str] | None = None
        self._rows: int | None = None

    @property
    def rows(self) -> int:
        """How many rows the file has."""
        if self._rows is None:
            self._rows = len(self._read())
        return self._rows

    @rank_zero_only
    def rewind(self, rows: int) -> None:
        """Forget all rows but the first `rows`: a resumed run logs the others again."""
        kept = self._read()[:rows]
        if self.path.exists():
            self._write(self._known_columns(), kept)
        self._rows = len(kept)

    @property
    @override
    def name(self) -> str:
        """Lightning groups runs by it; one folder holds one run."""
        return ""

    @property
    @override
    def version(self) -> str:
        """See `name`."""
        return ""

    @property
    @override
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    @override
    @rank_zero_only
    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Hyper-parameters stand in config.yaml."""

    @override
    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row."""
        row = {"step": "" if step is None else str(step), **{name: str(value) for name, value in metrics.items()}}
        columns = self._known_columns()
        new = [name for name in row if name not in columns]
        if new:
            self._rewrite([*columns, *new])
        rows = self.rows
        with doing(f"writing {self.path}"), self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self._known_columns()).writerow(row)
        self._rows = rows + 1

    def _known_columns(self) -> list[str]:
        if self._columns is None:
            header = self.path.read_text(encoding="utf-8").split("\n", 1)[0] if self.path.exists() else ""
            self._columns = next(csv.reader([header]), [])
        return self._columns

    def _rewrite(self, columns: list[str]) -> None:
        """Write all rows again under a longer header."""
        self._write(columns, self._read())

    def _read(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        return list(csv.DictReader(io.StringIO(self.path.read_text(encoding="utf-8"))))

    def _write(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())
        self._columns = columns


class EditsLogger(WandbLogger):
    """A wandb run whose curves all have the edits done so far as their axis.

    Each name is defined when it first comes: where several of wandb's own patterns fit a name, it is open which counts.
    Nothing that wandb refuses, such as a table for want of a folder in the home, ends a run: that is said once.

    Args:
        run: The run.
    """

    def __init__(self, run: Any) -> None:
        super().__init__(experiment=run)
        self._defined: set[str] = {"edits"}
        self._wandb = Dispensable("wandb")
        run.define_metric("edits")

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log one row."""
        with self._wandb.attempt():
            for name in metrics:
                if name not in self._defined:
                    self._defined.add(name)
                    self.experiment.define_metric(name, step_metric="edits", step_sync=True, summary=summary_of(name))
            super().log_metrics(metrics, step)

    @override
    @rank_zero_only
    def log_hyperparams(self, params: Any, *_: Any) -> None:
        """Show the settings."""
        with self._wandb.attempt():
            super().log_hyperparams(params)


def summary_of(name: str) -> str | None:
    """Which values of a metric a run's summary holds, in wandb's words.

    Example:
        >>> summary_of("val/efficacy"), summary_of("val/perplexity"), summary_of("time/seconds")
        ('last,max', 'last,min', None)
    """
    if not name.startswith((*_SCORES, _DRIFT)):
        return None
    metric = metric_of(name)
    less = name.startswith(_DRIFT) or (metric is not None and not metric.higher_is_better)
    return "last,min" if less else "last,max"


def run_loggers(
    run_dir: str,
    settings: WandbSettings,
    config: dict[str, Any],
    labels: Sequence[str] = (),
    resumed: bool = False,
) -> list[Logger]:
    """The default loggers.

    Args:
        run_dir: The run folder; metrics.csv and an offline wandb run go there.
        settings: Where the run stands in wandb.
        config: The run's configuration, shown by wandb.
        labels: Method, model and data: the run's tags, and its group if the settings name none.
        resumed: Whether the run resumes from a checkpoint.
    """
    return [MetricsFile(run_dir), *_wandb(run_dir, settings, config, labels, resumed)]


@doing("starting wandb")
def _wandb(
    run_dir: str, settings: WandbSettings, config: dict[str, Any], labels: Sequence[str], resumed: bool
) -> list[Logger]:
    """A wandb run as the user's own settings of wandb have it; none if wandb cannot start.

    Where they do not say how, it is online when the user is logged in, and offline otherwise.
    """
    if getattr(rank_zero_only, "rank", 0) != 0:
        return []
    import wandb

    try:
        own = own_settings()
        mode = own.get("mode")
        if mode == "disabled":
            return []
        Path(run_dir).mkdir(parents=True, exist_ok=True)
        given = _run_settings(run_dir, settings, labels, own)
    except Exception as error:  # a settings file that wandb cannot read
        log.warning("wandb could not start: %s", error)
        return []
    earlier = _earlier_run(Path(run_dir)) if resumed and "run_id" not in own else None
    attempts: list[Any] = [None] if mode else ["online", "offline"] if logged_in() else ["offline"]
    for attempt in attempts:
        # Only a run that is online can be resumed; offline a second one is written beside it.
        taken_up = earlier if (attempt or mode) in _ONLINE else None
        again: dict[str, Any] = {"id": taken_up, "resume": "allow" if taken_up else None}
        try:
            return [EditsLogger(wandb.init(**given, **again, mode=attempt, config=config))]
        except Exception as error:  # whatever it raises, the run continues without it
            log.warning("wandb could not start %s: %s", attempt or mode, error)
    return []


def own_settings() -> dict[str, Any]:
    """What the user has set for wandb: in the working folder's wandb/settings, in the home folder, in WANDB_*."""
    import wandb

    own = wandb.Settings()
    nothing = set(own.model_fields_set)
    own.settings_system = str(expanded(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")) / "settings")
    own.update_from_system_settings()
    own.update_from_env_vars(dict(os.environ))
    names = own.model_fields_set - nothing - {"settings_system"}
    return {name: value for name in names if (value := getattr(own, name)) is not None}


def _run_settings(
    run_dir: str, settings: WandbSettings, labels: Sequence[str], own: Mapping[str, Any]
) -> dict[str, Any]:
    """What `wandb.init` is given: ours where the user has named it for this run, or nothing of his own is set."""
    import wandb

    project = None if "project" in own and settings.project == WandbSettings.project else settings.project
    group = settings.group or (None if "run_group" in own else ", ".join(labels)[:_LONGEST_GROUP] or None)
    tags = (*labels, *(settings.tags or ()), *(own.get("run_tags") or ()))
    if any(not 0 < len(tag) <= _LONGEST_TAG for tag in settings.tags or ()):
        log.warning("wandb takes tags of 1 to %d characters: longer ones of --wandb.tags are cut off.", _LONGEST_TAG)
    defaults: dict[str, Any] = {"init_timeout": 30.0, "silent": True}
    return {
        "project": project,
        "entity": settings.entity,
        "group": group,
        "tags": list(dict.fromkeys(tag[:_LONGEST_TAG] for tag in tags if tag)),
        "name": None if "run_name" in own else Path(run_dir).absolute().name,
        "dir": None if "root_dir" in own else run_dir,
        "settings": wandb.Settings(**{name: value for name, value in defaults.items() if name not in own}),
    }


def _earlier_run(run_dir: Path) -> str | None:
    """The id of the newest online run that this run folder holds; wandb names folders run-<time>-<id>."""
    names = sorted(path.name for path in (run_dir / "wandb").glob("run-*-*"))
    return names[-1].rpartition("-")[2] if names else None


def logged_in() -> bool:
    """Whether a key is at hand, without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
