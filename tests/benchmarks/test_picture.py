import pytest
from matplotlib.image import imread

from benchmarks.picture import summary_picture


def test_picture_is_wide_and_shows_the_curves(make_run, tmp_path):
    path = summary_picture(make_run(), tmp_path / "pictures" / "run.png")
    pixels = (imread(path)[:, :, :3] * 255).round().astype(int)
    assert pixels.shape == (560, 1600, 3)
    for color in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73), (0xC9, 0x8A, 0x00)):
        assert (abs(pixels - color).max(axis=2) < 8).sum() > 100


@pytest.mark.parametrize("columns", ["step,edits\n0,100\n", "step,edits,val/efficacy,val/perplexity\n0,100,0.9,inf\n"])
def test_picture_of_a_run_with_little_in_it(tmp_path, columns):
    (tmp_path / "metrics.csv").write_text(columns)
    assert summary_picture(tmp_path, tmp_path / "run.png").stat().st_size > 5000


def test_dollar_signs_in_names_are_no_formulas(make_run, tmp_path):
    assert summary_picture(make_run(method=r"cost $\frac"), tmp_path / "run.png").exists()
