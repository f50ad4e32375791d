import pytest

from study.sweep import draw_sweep, point, sweep_section, sweeps
from study.tests.made import make_run

PLAIN = make_run("counterfact-memit-plain-batch10-draw1-300", [0.9, 0.5, 0.3])
POINTS = [
    make_run(f"counterfact-memit-{variant}-batch10-draw1-200", [0.9, efficacy])
    for variant, efficacy in (
        ("current", 0.75),
        ("current_eta0.9_alpha0.8", 0.5),
        ("current_eta0.5_alpha1", 0.8),
        ("pretrained_eta0.9_alpha1", 0.52),
    )
]


@pytest.mark.parametrize(
    ("method", "variant", "expected"),
    [
        ("memit", "current", ("current", 0.5, 0.8)),
        ("alphaedit", "pretrained", ("pretrained", 0.5, 0.5)),
        ("memit", "current_eta0.3_alpha1", ("current", 0.3, 1.0)),
        ("memit", "two_sided", None),
        ("memit", "plain", None),
    ],
)
def test_a_variants_place_in_the_sweep(method, variant, expected):
    assert point(make_run(f"counterfact-{method}-{variant}-draw1-100", [0.9]).key) == expected


def test_points_are_gathered_around_the_run_without_sphere():
    other = make_run("counterfact-memit-two_sided-batch10-draw1-200", [0.9, 0.1])
    (sweep,) = sweeps([*POINTS, other, PLAIN])
    assert sweep.plain is PLAIN
    assert sweep.edits == 200
    assert list(sweep.points.values()) == POINTS
    assert sweep.value("val/efficacy", "current", 0.9, 0.0) == 0.5
    assert sweep.value("val/efficacy", "current", 0.5, 0.8) == 0.75
    assert sweep.value("val/efficacy", "pretrained", 0.5, 0.8) is None


def test_there_is_no_sweep_without_its_runs():
    assert sweeps([PLAIN]) == sweeps(POINTS) == sweeps([PLAIN, POINTS[0]]) == []
    assert sweep_section([PLAIN]) == ""


def test_the_section_has_a_row_for_each_ratio_and_marks_the_best():
    text = sweep_section([*POINTS, PLAIN])
    assert "after 200 of them, memit batch10, draw 1;" in text
    assert "| current | 0.5 | 0.500 | 0.750 | **0.800** |" in text
    assert "| current | 0.9 | 0.500 | 0.500 |  |" in text
    assert "| pretrained | 0.9 | 0.500 |  | 0.520 |" in text
    assert "| pretrained | 0.5 |" not in text  # nothing was run there
    assert "Of 4 points (of a grid of 8) 2 are more than" in text
    assert "SPHERE, 0.500, and 0 below it." in text
    assert "The best with SPHERE: η = 0.5, α = 1, current basis." in text


def test_points_that_are_worse_than_the_run_without_sphere_are_counted():
    plain = make_run("counterfact-memit-plain-batch10-draw1-200", [0.9, 0.79])
    text = sweep_section([POINTS[1], POINTS[3], plain])
    assert "Of 2 points (of a grid of 4) 0 are" in text
    assert "SPHERE, 0.790, and 2 below it." in text


def test_a_whole_grid_is_not_called_a_part():
    text = sweep_section([POINTS[2], PLAIN])
    assert "Of 1 points 1 are" in text


def test_the_heat_maps_are_drawn(tmp_path):
    (sweep,) = sweeps([*POINTS, PLAIN])
    assert draw_sweep(sweep, tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
