"""What a matrix's output adds to the stream, and which output adds most nearly what is wanted."""

import pytest
import torch
from torch import nn

from sphere_pl.model.output_path import DIRECT, OutputPath

GAINS = torch.tensor([1.5, 0.7, 1e-6, 3.0, 0.2, 1e-3, 1.0, 0.9])


class Norm(nn.Module):
    """Gemma's: the gain is one more than the weight."""

    def __init__(self, gains):
        super().__init__()
        self.weight = nn.Parameter(gains - 1)

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


@pytest.fixture
def path():
    return OutputPath(Norm(GAINS), 0.5)


@pytest.fixture
def outputs():
    return 3 * torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


def test_gains_are_read_off_the_norm_whatever_its_weights_mean(path, outputs):
    torch.testing.assert_close(path.gains(outputs), 0.5 * GAINS, rtol=1e-4, atol=1e-7)


def test_without_norm_the_nearest_output_is_the_gain_divided_by_the_factor(outputs):
    torch.testing.assert_close(OutputPath(None, 0.5).nearest_output(outputs, outputs), 2 * outputs)
    assert torch.equal(DIRECT.nearest_output(outputs, outputs), outputs)


def test_what_can_be_had_is_found_also_from_afar(path, outputs):
    wanted = path.gain(outputs)
    found = path.nearest_output(wanted, near=outputs.flip(0))
    assert (path.gain(found) - wanted).norm() / wanted.norm() < 1e-3  # but for what has no gain
    torch.testing.assert_close(found.square().mean(1), outputs.flip(0).square().mean(1), rtol=1e-3, atol=0)


def test_coordinates_without_gain_stay_where_they_were(path, outputs):
    found = path.nearest_output(path.gain(outputs), near=outputs)
    torch.testing.assert_close(found, outputs, rtol=1e-3, atol=1e-3)


def test_nothing_that_can_be_had_is_nearer(path, outputs):
    wanted = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    least = (path.gain(path.nearest_output(wanted, near=outputs)) - wanted).norm(dim=1)
    others = torch.randn(2000, 1, 8, generator=torch.Generator().manual_seed(2))
    assert ((path.gain(others) - wanted).norm(dim=2) >= least - 1e-3).all()
