import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from sphere_callbacks import HypersphericalEnergy, Loop
from sphere_callbacks.functional import computes_in_double, hyperspherical_energy


def test_apples_gpus_have_no_double_precision():
    known = {name: computes_in_double(torch.device(name)) for name in ("cpu", "cuda:1", "xpu", "mps", "mps:0")}
    assert known == {"cpu": True, "cuda:1": True, "xpu": True, "mps": False, "mps:0": False}


def test_a_weight_on_such_a_device_is_refused_with_what_to_do(single_precision):
    single_precision("meta")
    with pytest.raises(ValueError, match=r"`weight` lies on meta.*`weight.cpu\(\)`"):
        hyperspherical_energy(torch.empty(3, 2, device="meta"))


def test_a_callback_says_so_before_the_first_batch(single_precision):
    single_precision("meta")
    model = torch.nn.Linear(3, 2, device="meta")
    loop = Loop([torch.optim.SGD(model.parameters(), lr=0.1)])
    with pytest.raises(MisconfigurationException, match="`HypersphericalEnergy` needs double precision, which meta"):
        HypersphericalEnergy().on_train_start(loop, model)


@pytest.mark.parametrize(
    ("weight", "error", "words"),
    [
        (torch.ones(2, 2, dtype=torch.int8), TypeError, "floating"),
        (torch.ones(4), ValueError, r"matrix \[d_out, d_in\], got shape \[4\]"),
    ],
)
def test_what_is_no_floating_matrix_is_refused(weight, error, words):
    with pytest.raises(error, match=words):
        hyperspherical_energy(weight)
