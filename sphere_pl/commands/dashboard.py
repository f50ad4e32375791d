"""`python -m sphere_pl dashboard`: the wandb workspace of an editing project, written as code."""

import json
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sphere_pl.commands.parsers import Parser
from sphere_pl.errors import UserError
from sphere_pl.evaluation.metrics.table import ACCURACIES, FIRST_RANK, FURTHER, PROTOCOLS
from sphere_pl.run.loggers import WandbSettings, logged_in

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

COLUMNS = 3  # panels beside each other

OFFLINE = (
    "Runs that were logged offline need no account: `wandb leet runs/<name>/wandb` shows one in the terminal, also "
    "while it lasts, and `wandb sync runs/<name>/wandb/offline-run-*` sends it later."
)


class Panel(NamedTuple):
    """One panel: curves over the edits, bars of summary values, a plotly figure or image, or a table.

    Attributes:
        kind: What it is.
        title: Its heading.
        keys: Names as they are logged; a name that ends with `*` stands for all that begin so.
        log: Whether its y axis is logarithmic.
    """

    kind: Literal["curves", "bars", "media", "table"]
    title: str
    keys: tuple[str, ...]
    log: bool = False


class Section(NamedTuple):
    """Panels under one heading."""

    name: str
    panels: tuple[Panel, ...]
    is_open: bool = True


def specification() -> tuple[Section, ...]:
    """The workspace: which panels stand where."""
    return (*_edits_and_energy(), *_weights_and_answers())


def _edits_and_energy() -> tuple[Section, ...]:
    accuracies = tuple(f"val/{metric}" for metric in ACCURACIES)
    return (
        Section(
            "Do the edits last?",
            (
                Panel("curves", "All edits so far", accuracies),
                Panel("curves", "Latest batch", tuple(f"batch/{metric}" for metric in ACCURACIES)),
                Panel("curves", "Efficacy by age", ("retention/*",)),
                Panel("bars", "Edits at collapse (efficacy below 60 %)", ("collapse/edits",)),
                Panel("curves", "Perplexity on held-out text", ("val/perplexity",), log=True),
            ),
        ),
        Section(
            "Energy",
            (
                Panel("curves", "Energy and metrics (Fig. 2, live)", (*accuracies, "energy/change")),
                Panel("curves", "Energy, change since the start", ("energy/change", "energy/step_change")),
                Panel("media", "Energy against metrics (Fig. 2)", ("figures/trends",)),
                Panel("media", "Changes (Fig. 3)", tuple(f"figures/changes/{m}" for m in FIRST_RANK)),
                Panel("curves", "Spearman of levels", ("spearman/*",)),
                Panel("curves", "Spearman of differences", ("spearman_diff/*",)),
            ),
        ),
    )


def _weights_and_answers() -> tuple[Section, ...]:
    return (
        Section(
            "Weights",
            (
                Panel("media", "Rows of the weights (Figs. 4 and 5)", ("geometry",)),
                Panel("curves", "Update in principal directions", ("projection/in_principal", "projection/chance")),
                Panel("curves", "Overlap of principal directions", ("principal/overlap", "principal/overlap_chance")),
                Panel("curves", "Theorem 1", ("bound/perturbation", "bound/lower"), log=True),
            ),
        ),
        Section(
            "What else the model can do",
            (
                Panel("curves", "General abilities (Fig. 6)", ("abilities/*",)),
                Panel("curves", "Drift from the unedited model", ("drift/*",)),
                *(Panel("curves", f"By {each.name}", (f"val/{each.prefix}*",)) for each in PROTOCOLS if each.prefix),
                Panel("curves", "Portability, fluency", tuple(f"val/{metric}" for metric in FURTHER)),
            ),
        ),
        Section(
            "Answers",
            (
                Panel("table", "Edits that failed", ("tables/failed",)),
                Panel("table", "Case study", ("tables/cases",)),
            ),
        ),
        Section(
            "Cost",
            (
                Panel("curves", "Seconds a batch", ("time/seconds",)),
                Panel("curves", "Target probability", ("target/probability",)),
                Panel("curves", "Target steps", ("target/steps",)),
            ),
            is_open=False,
        ),
    )


def build_workspace(entity: str, project: str, name: str, sections: Sequence[Section]) -> "Workspace":
    """Translate a specification into wandb's own classes; nothing is sent.

    Raises:
        UserError: If wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise UserError(
            "The dashboard is written with wandb-workspaces, which is not installed. Run "
            "`pip install 'wandb-workspaces>=0.4.13,<0.5'`, or in a checkout "
            "`pip install -e ./callbacks -e '.[dashboard]'`."
        ) from error
    built = [
        ws.Section(
            name=section.name,
            panels=[_panel(panel) for panel in section.panels],
            is_open=section.is_open,
            layout_settings=ws.SectionLayoutSettings(columns=COLUMNS, rows=math.ceil(len(section.panels) / COLUMNS)),
            panel_settings=ws.SectionPanelSettings(x_axis="edits"),
        )
        for section in sections
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=built,
        settings=ws.WorkspaceSettings(x_axis="edits", max_runs=20),
        runset_settings=ws.RunsetSettings(groupby=[ws.Metric("group")]),
    )


def _panel(panel: Panel) -> Any:
    import wandb_workspaces.reports.v2 as wr

    if panel.kind == "media":
        return wr.MediaBrowser(title=panel.title, media_keys=list(panel.keys))
    if panel.kind == "table":
        return wr.WeavePanelSummaryTable(table_name=panel.keys[0])
    if panel.kind == "bars":
        return wr.BarPlot(title=panel.title, metrics=list(panel.keys), orientation="v")
    names: dict[str, Any] = {"y": list(panel.keys)}
    if panel.keys[0].endswith("*"):
        names = {"metric_regex": f"^{panel.keys[0].removesuffix('*')}.*"}
    return wr.LinePlot(title=panel.title, x="edits", log_y=panel.log or None, **names)


def main(args: Sequence[str]) -> None:
    """Write the workspace into a wandb project, or print what it would be.

    Raises:
        UserError: If the extra or the login is missing, or wandb refuses.
    """
    parser = Parser("dashboard", description="Write the wandb workspace.")
    parser.add_argument("--project", default=WandbSettings.project, help="the wandb project")
    parser.add_argument("--entity", help="the wandb user or team; your default one if left out")
    parser.add_argument("--name", default="Sequential editing", help="name of the workspace")
    parser.add_argument("--print", action="store_true", help="only print the panels as JSON; needs no account")
    given = parser.parse_args(args)
    if given.print:
        sys.stdout.write(json.dumps([_plain(section) for section in specification()], indent=1) + "\n")
        return
    workspace = build_workspace(given.entity or "", given.project, given.name, specification())
    if not logged_in():
        raise UserError(f"The dashboard is a page on wandb's server: run `wandb login` first. {OFFLINE}")
    sys.stdout.write(f"Open {_save(workspace)}\n")


def _plain(section: Section) -> dict[str, Any]:
    return {"name": section.name, "open": section.is_open, "panels": [panel._asdict() for panel in section.panels]}


def _save(workspace: "Workspace") -> str:
    """Send the workspace; returns its address."""
    import wandb

    try:
        workspace.entity = workspace.entity or str(wandb.Api().default_entity)
        return str(workspace.save().url)
    except Exception as error:  # wandb's own errors, those of requests, and those of the server's answers
        raise UserError(
            f"wandb did not take the workspace for {workspace.entity}/{workspace.project}: {error}. Check the network, "
            f"--entity and --project; the project must have a run. {OFFLINE}"
        ) from error
