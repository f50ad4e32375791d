import math

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

import sphere_callbacks.geometry
from sphere_callbacks import WeightGeometry
from sphere_callbacks.functional import row_cosines
from sphere_callbacks.geometry import draw_geometry, embed, figure_to_array


def test_figures_go_to_loggers_and_to_the_folder(run, recording_logger, tmp_path):
    run(WeightGeometry(every_n_batches=2, rows=5, output_dir=str(tmp_path / "new")), logger=recording_logger)
    names = ["layers.0.down_proj", "layers.1.down_proj"]
    assert [key for key, _ in recording_logger.images] == ["geometry"] * 2
    assert all(image.shape[2] == 4 for _, images in recording_logger.images for image in images)
    assert [len(images) for _, images in recording_logger.images] == [len(names)] * 2
    found = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert found == sorted(f"{name}-{batch:06d}.png" for name in names for batch in (2, 4))


def test_panels_show_the_cosines_at_the_start_and_now(weights):
    start = weights["layers.1.down_proj"]
    figure = draw_geometry(start, -2 * start.flip(0))
    shown = [panel.images[0].get_array() for panel in figure.axes[:2]]
    everything = torch.arange(10)
    torch.testing.assert_close(torch.tensor(shown[0].data), row_cosines(start, everything))
    torch.testing.assert_close(torch.tensor(shown[1].data), row_cosines(start.flip(0), everything))
    assert [len(dots.get_offsets()) for dots in figure.axes[2].collections] == [10, 10]


def test_chosen_rows_are_evenly_spaced_and_stay_the_same(run, weights):
    callback = WeightGeometry(rows=4, output_dir="unused")
    run(callback)
    chosen = weights["layers.1.down_proj"][[0, 3, 6, 9]]
    assert torch.equal(callback.state_dict()["start"]["layers.1.down_proj"], chosen)


def test_embedding_is_reproducible_and_keeps_clusters_apart():
    generator = torch.Generator().manual_seed(0)
    points = torch.cat([torch.randn(20, 5, generator=generator), 30 + torch.randn(20, 5, generator=generator)])
    first = embed(points, seed=1)
    assert torch.equal(first, embed(points, seed=1))
    left, right = first.chunk(2)
    spread = max(float((side - side.mean(0)).norm(dim=1).mean()) for side in (left, right))
    assert float((left.mean(0) - right.mean(0)).norm()) > 2 * spread


def test_rows_with_nan_are_drawn_without_a_map():
    figure = draw_geometry(torch.eye(4), torch.full((4, 4), math.nan))
    assert figure.axes[2].collections[:] == []
    assert figure_to_array(figure).shape[2] == 4


def test_a_resumed_run_compares_with_the_first_start(run, save_after, tmp_path):
    callback = WeightGeometry(every_n_batches=3, output_dir=str(tmp_path / "figures"))
    run(callback, save_after(2, tmp_path / "two.ckpt"))
    resumed = WeightGeometry(every_n_batches=3, output_dir=str(tmp_path / "again"))
    run(resumed, ckpt_path=tmp_path / "two.ckpt")
    for name, start in callback.state_dict()["start"].items():
        assert torch.equal(resumed.state_dict()["start"][name], start)
    assert {path.name[-10:] for path in (tmp_path / "again").iterdir()} == {"000003.png"}


def test_a_missing_library_is_named_with_the_command_that_installs_it(run, monkeypatch):
    monkeypatch.setattr(sphere_callbacks.geometry, "find_spec", lambda name: None if name == "sklearn" else True)
    with pytest.raises(MisconfigurationException, match=r"needs sklearn.*sphere-callbacks\[plots\]"):
        run(WeightGeometry(output_dir="unused"))


def test_figures_with_nowhere_to_go_are_refused(run):
    with pytest.raises(MisconfigurationException, match="nowhere to send"):
        run(WeightGeometry())


@pytest.mark.parametrize("arguments", [{"every_n_batches": 0}, {"rows": 3}], ids=str)
def test_bad_arguments_are_refused_as_they_were_written(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        WeightGeometry(**arguments)
