"""What a wandb run shows beside its curves: figures of the paper, tables of answers, the values at collapse."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import WandbLogger
from typing_extensions import override

from sphere_pl.process.closing import Dispensable, after_results
from sphere_pl.report.collapse import collapse
from sphere_pl.report.correlations import correlations
from sphere_pl.report.drawing import Drawing, finite
from sphere_pl.report.figures import change_figures, trend_figure
from sphere_pl.report.reading import RunData, read_run

TABLES = {
    "failed": ("case_id", "subject", "prompt", "wanted", "given"),
    "cases": ("prompt", "before", "after", "wanted"),
}


class WandbPanels(L.Callback):
    """Send figures, tables and the values at collapse to wandb, if the run logs there.

    Figures go every few validations and at the end: energy and metrics in one panel (the paper's Fig. 2) as
    `figures/trends`, changes of energy against changes of each metric with regression line and 95 % ellipse (Fig. 3) as
    `figures/changes/<metric>`. At the end follow the tables `tables/failed` and `tables/cases`, and in the summary
    `collapse/edits` and `collapse/<metric>`. Stands after what writes `results.json`.

    Args:
        run_dir: The run folder.
        every: Validations between figures.
    """

    def __init__(self, run_dir: str, every: int = 10) -> None:
        self.run_dir = Path(run_dir)
        self.every = every
        self._validations = 0
        self._figures = Dispensable("Sending figures to wandb")

    @override
    def on_validation_end(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Send the figures now and then."""
        self._validations += not trainer.sanity_checking
        if not trainer.sanity_checking and self._validations % self.every == 0:
            for logger in _wandb_loggers(trainer):
                with self._figures.attempt():
                    send_figures(logger, read_run(self.run_dir))

    @override
    def on_fit_end(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Send everything."""
        for logger in _wandb_loggers(trainer):
            with after_results("sending figures and tables to wandb"):
                found = read_run(self.run_dir)
                send_figures(logger, found)
                send_tables(logger, found)
                logger.experiment.summary.update(collapse_summary(found))


def send_figures(logger: WandbLogger, found: RunData) -> None:
    """Log the paper's Figs. 2 and 3, as far as there are validations for them."""
    import wandb

    drawn = {f"figures/changes/{metric}": drawing for metric, drawing in change_figures(found).items()}
    trend = trend_figure(found, correlations(found))
    if trend is not None:
        drawn["figures/trends"] = trend
    if drawn:
        figures: dict[str, Any] = {name: wandb.Plotly(_plotly(drawing)) for name, drawing in drawn.items()}
        logger.log_metrics(figures | {"edits": found.edits})


def send_tables(logger: WandbLogger, found: RunData) -> None:
    """Log the edits that failed and the case study."""
    import wandb

    for name, columns in TABLES.items():
        rows = found.results.get(name) or []
        if rows:
            shown: list[str | int] = [column for column in columns if any(column in row for row in rows)]
            data = [[str(row.get(column, "")) for column in shown] for row in rows]
            table: Any = wandb.Table(columns=shown, data=data)
            logger.log_metrics({f"tables/{name}": table, "edits": found.edits})


def collapse_summary(found: RunData) -> dict[str, float]:
    """Values at the first validation whose efficacy over all edits was below 60 %; empty if there was none."""
    point = collapse(found)
    if point is None:
        return {}
    values: dict[str, float] = finite(point.values)
    return {"collapse/edits": point.edits} | {f"collapse/{name.removeprefix('val/')}": v for name, v in values.items()}


def _wandb_loggers(trainer: "L.Trainer") -> list[WandbLogger]:
    return [each for each in trainer.loggers if trainer.is_global_zero and isinstance(each, WandbLogger)]


def _plotly(drawing: Drawing) -> Any:
    """As plotly's own class, which is what wandb takes; without a template, which would outweigh the data."""
    from plotly.graph_objects import Figure

    layout = {name: value for name, value in drawing.layout.items() if name != "meta"}
    return Figure(data=drawing.data, layout={**layout, "template": "none"})
