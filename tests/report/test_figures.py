import json

import numpy as np
import pytest
from plotly.graph_objects import Figure

from sphere_pl.report import families, figures
from sphere_pl.report.correlations import correlations
from sphere_pl.report.drawing import Drawing
from sphere_pl.report.fits import confidence_ellipse, regression_line
from sphere_pl.report.reading import Series, read_run

EDITS = np.arange(100, 1600, 100.0)


def plotly(drawing):
    """As plotly's own classes see it; they refuse what its schema does not know."""
    return Figure(data=drawing.data, layout=drawing.layout)


def trace(figure, name):
    found = [each for each in figure.data if each.name == name and each.showlegend is not False]
    assert len(found) == 1, f"{name}: {[each.name for each in figure.data]}"
    return found[0]


def test_accuracy_figure_shows_what_was_logged(make_run, curves):
    figure = plotly(figures.accuracy_figure(read_run(make_run())))
    columns = curves()
    for metric, name in {"efficacy": "efficacy", "neighborhood_agreement": "agreement"}.items():
        shown = trace(figure, name)
        assert shown.x[0] == 0
        assert shown.y[0] == {"efficacy": 0.004, "agreement": 1.0}[name]
        np.testing.assert_array_equal(shown.x[1:], EDITS)
        np.testing.assert_allclose(shown.y[1:], columns[f"val/{metric}"])
    np.testing.assert_allclose(trace(figure, "efficacy, latest batch").y, columns["batch/efficacy"])
    dotted = [each for each in figure.data if each.line.dash == "dot"]
    assert sorted(each.y[0] for each in dotted) == [0.004, 0.006, 0.21, 1.0]


def test_unfinished_run_has_no_unedited_lines(make_run):
    figure = plotly(figures.accuracy_figure(read_run(make_run(finished=False))))
    assert not any(each.line.dash == "dot" for each in figure.data)
    assert trace(figure, "efficacy").x[0] == 100


def test_energy_figure_shows_changes_above_and_perplexity_below(make_run, curves):
    figure = plotly(figures.energy_figure(read_run(make_run())))
    columns = curves()
    np.testing.assert_allclose(trace(figure, "mean over matrices").y, [0, *columns["energy/change"]])
    np.testing.assert_allclose(trace(figure, "perplexity").y, [57.4, *columns["val/perplexity"]])
    assert trace(figure, "perplexity").yaxis == "y2"
    assert figure.layout.yaxis.domain[0] > figure.layout.yaxis2.domain[1]
    matrix = next(each for each in figure.data if each.name == "layer 5")
    start = 170000 * 1.05
    np.testing.assert_allclose(
        matrix.y[1:], columns["energy/model.layers.5.mlp.down_proj.weight"] / start - 1, atol=1e-12
    )


def test_trend_figure_has_a_coefficient_at_the_end_of_each_curve(make_run):
    run = read_run(make_run())
    figure = plotly(figures.trend_figure(run, correlations(run)))
    assert [note.text for note in figure.layout.annotations] == ["ρ −0.93"] * 4
    assert {note.x for note in figure.layout.annotations} == {1500}
    heights = sorted(note.y for note in figure.layout.annotations)
    assert min(np.diff(heights)) > 0.07
    assert trace(figure, "energy (right axis)").yaxis == "y2"


def test_change_figures_show_differences_line_and_ellipse(make_run, curves):
    found = figures.change_figures(read_run(make_run()))
    columns = curves()
    assert set(found) == {"efficacy", "generalization", "specificity", "neighborhood_agreement", "perplexity"}
    for metric, figure in found.items():
        x, y = np.diff(columns["energy/change"]), np.diff(columns[f"val/{metric}"])
        points, ellipse, line = plotly(figure).data
        np.testing.assert_allclose(points.x, x, atol=1e-15)
        np.testing.assert_allclose(points.y, y, atol=1e-12)
        np.testing.assert_array_equal(points.customdata, EDITS[1:])
        np.testing.assert_allclose([ellipse.x, ellipse.y], confidence_ellipse(x, y), atol=1e-9)
        slope, intercept = regression_line(x, y)
        np.testing.assert_allclose(line.y, intercept + slope * np.array([x.min(), x.max()]), atol=1e-12)


@pytest.mark.parametrize(("batches", "count"), [(3, 0), (4, 5)])
def test_four_validations_are_needed_for_changes(make_run, batches, count):
    assert len(figures.change_figures(read_run(make_run(batches=batches)))) == count


def test_projection_cost_and_target_figures_show_their_columns(make_run, curves):
    run, columns = read_run(make_run()), curves()
    projection = plotly(figures.projection_figure(run))
    np.testing.assert_allclose(trace(projection, "in principal directions").y, columns["projection/in_principal"])
    np.testing.assert_allclose(trace(projection, "chance").y, columns["projection/chance"])
    np.testing.assert_allclose(plotly(figures.seconds_figure(run)).data[0].y, columns["time/seconds"])
    np.testing.assert_allclose(plotly(figures.target_figure(run)).data[0].y, columns["target/probability"])


def test_figures_without_data_are_none(tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1\n")
    run = read_run(tmp_path)
    for draw in ("accuracy_figure", "energy_figure", "projection_figure", "seconds_figure", "target_figure"):
        assert getattr(figures, draw)(run) is None
    assert figures.trend_figure(run, {}) is None
    assert figures.change_figures(run) == {}


def test_labels_keep_their_distance_their_order_and_the_axis():
    found = figures.spread({"a": 0.0, "b": 0.01, "c": 0.02, "d": 0.5, "e": float("nan")}, gap=0.1)
    assert found == {"a": 0.05, "b": 0.15, "c": 0.25, "d": 0.5}


EXTRA = """step,edits,val/efficacy,val/probability/efficacy,val/generation/efficacy,val/fluency,\
retention/earliest/efficacy,retention/latest/efficacy,drift/kl,abilities/sst2,abilities/nli_x,bound/tightness
0,100,0.9,0.95,0.8,6.2,0.9,0.95,0.01,0.8,0.6,0.5
1,200,0.8,0.9,0.6,6.0,0.7,0.95,0.02,0.7,0.5,0.4
"""


@pytest.fixture
def extra(tmp_path):
    """A run that has logged a series of every further family."""
    (tmp_path / "metrics.csv").write_text(EXTRA)
    (tmp_path / "results.json").write_text('{"abilities": {"sst2": {"before": 0.85}}, "before": {"fluency": 6.3}}')
    return read_run(tmp_path)


def test_each_protocol_is_a_curve_in_the_figure_of_its_metric(extra):
    found = families.protocol_figures(extra)
    assert list(found) == ["efficacy"]
    figure = plotly(found["efficacy"])
    assert [each.name for each in figure.data] == ["teacher-forced", "probability", "generation"]
    assert [list(each.y) for each in figure.data] == [[0.9, 0.8], [0.95, 0.9], [0.8, 0.6]]
    assert figure.layout.yaxis.tickformat == ".0%"


def test_ages_tasks_and_drift_have_their_figures(extra):
    ages = plotly(families.retention_figures(extra)["efficacy"])
    assert [(each.name, list(each.y)) for each in ages.data] == [
        ("earliest edits", [0.9, 0.7]),
        ("latest edits", [0.95, 0.95]),
    ]
    tasks = plotly(families.ability_figure(extra))
    assert [(each.name, list(each.x), list(each.y)) for each in tasks.data] == [
        ("nli x", [100, 200], [0.6, 0.5]),
        ("sst2", [0, 100, 200], [0.85, 0.8, 0.7]),
    ]
    assert list(families.drift_figures(extra)) == ["drift/kl"]
    fluency = plotly(families.further_figures(extra)["val/fluency"])
    assert list(fluency.data[0].y) == [6.3, 6.2, 6.0]
    assert fluency.layout.yaxis.tickformat is None


def test_what_no_figure_knows_is_shown_all_the_same(extra, make_run):
    assert list(families.other_figures(extra)) == ["bound/tightness"]
    assert list(families.other_figures(read_run(make_run()))) == ["target/loss", "target/steps"]


def test_an_ordinary_run_has_no_empty_families(make_run):
    run = read_run(make_run())
    assert families.protocol_figures(run) == families.retention_figures(run) == families.drift_figures(run) == {}
    assert families.ability_figure(run) is None


def test_a_single_place_stands_on_an_axis_that_begins_at_zero():
    lone, long = Drawing(300, "edits so far"), Drawing(300, "edits so far")
    for height in (0.9, 0.8):
        lone.add(figures.curve(Series((100.0,), (height,)), "ages", "#000000"))
    long.add(figures.curve(Series((100.0, 200.0), (0.9, 0.8)), "early", "#000000"))
    assert json.loads(lone.to_json())["layout"]["xaxis"]["rangemode"] == "tozero"
    assert "rangemode" not in json.loads(long.to_json())["layout"]["xaxis"]
