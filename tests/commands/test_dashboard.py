import json
import sys

import pytest

from sphere_pl.commands import dashboard
from sphere_pl.commands.dashboard import build_workspace, main, specification
from sphere_pl.errors import UserError


@pytest.fixture
def panels():
    """Every panel as wandb's server would get it, with its section's name."""
    pytest.importorskip("wandb_workspaces")
    sections = build_workspace("me", "mine", "view", specification())._to_model().model_dump(by_alias=True)
    bank = sections["spec"]["section"]["panelBankConfig"]
    return [(section, panel) for section in bank["sections"] for panel in section["panels"]]


def configs(panels, kind):
    return [panel["config"] for _, panel in panels if panel["viewType"] == kind]


def test_all_curves_stand_over_the_edits(panels):
    curves = configs(panels, "Run History Line Plot")
    assert len(curves) >= 15
    assert {each["xAxis"] for each in curves} == {"edits"}
    assert {section["localPanelSettings"]["xAxis"] for section, _ in panels} == {"edits"}


def test_energy_and_metrics_share_a_panel(panels):
    (fig2,) = [each for each in configs(panels, "Run History Line Plot") if "Fig. 2" in each["chartTitle"]]
    assert fig2["metrics"] == [
        "val/efficacy", "val/generalization", "val/specificity", "val/neighborhood_agreement", "energy/change",
    ]  # fmt: skip


def test_figures_images_tables_and_the_point_of_collapse_have_panels(panels):
    media = [key for each in configs(panels, "Media Browser") for key in each["mediaKeys"]]
    assert media[0] == "figures/trends"
    assert "figures/changes/efficacy" in media
    assert "geometry" in media
    assert [each["metrics"] for each in configs(panels, "Bar Chart")] == [["collapse/edits"]]
    tables = json.dumps(configs(panels, "Weave"))
    assert "tables/failed" in tables
    assert "tables/cases" in tables


def test_families_of_names_are_found_by_their_beginning(panels):
    patterns = [each["metricRegex"] for each in configs(panels, "Run History Line Plot") if each["useMetricRegex"]]
    assert {"^abilities/.*", "^retention/.*", "^drift/.*"} <= set(patterns)


def test_runs_are_grouped_and_nothing_is_hidden(panels):
    workspace = build_workspace("me", "mine", "view", specification())
    section = workspace._to_model().model_dump(by_alias=True)["spec"]["section"]
    assert [key["name"] for key in section["runSets"][0]["grouping"]] == ["group"]
    for part in section["panelBankConfig"]["sections"]:
        flow = part["flowConfig"]
        assert flow["columnsPerPage"] * flow["rowsPerPage"] >= len(part["panels"])


def test_the_panels_can_be_printed_without_an_account(capsys):
    main(["--print"])
    printed = json.loads(capsys.readouterr().out)
    assert [section["name"] for section in printed] == [section.name for section in specification()]


def test_without_a_login_it_says_how_to_log_in_and_what_works_offline(monkeypatch):
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setattr(dashboard, "logged_in", lambda: False)
    with pytest.raises(UserError, match=r"wandb login.*wandb leet.*wandb sync"):
        main([])


def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(UserError, match=r"pip install -e ./callbacks -e '.\[dashboard\]'"):
        main([])


def test_what_the_server_refuses_is_a_sentence(monkeypatch):
    workspaces = pytest.importorskip("wandb_workspaces.workspaces")

    def refuse(self):
        raise ValueError("project not found")

    monkeypatch.setattr(dashboard, "logged_in", lambda: True)
    monkeypatch.setattr(workspaces.Workspace, "save", refuse)
    with pytest.raises(UserError, match=r"me/mine: project not found"):
        main(["--entity", "me", "--project", "mine"])
