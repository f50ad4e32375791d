import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from sphere_callbacks import HypersphericalEnergy, Loop, SparseProjection, record_factors
from sphere_callbacks.functional import (
    computes_in_double,
    curvature_basis,
    energy_constant,
    hyperspherical_energy,
    output_perturbation,
    principal_directions,
    project_low_curvature,
    project_out,
    reading_from,
    relative_mask,
    row_cosines,
    subspace_overlap,
)


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


class OnCuda(torch.Tensor):
    """Refuses what CUDA refuses under `torch.use_deterministic_algorithms(True)`."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function == torch.Tensor.is_cuda.__get__:  # made anew each time it is asked for
            return True
        if function in {torch.Tensor.cumsum, torch.Tensor.kthvalue}:
            raise RuntimeError(f"{function.__name__} does not have a deterministic implementation")
        result = super().__torch_function__(function, types, args, kwargs)
        return result.as_subclass(torch.Tensor) if function is torch.Tensor.cpu else result


def test_deterministic_algorithms_suffice_for_what_needs_a_running_sum():
    weight = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    directions, basis = principal_directions(weight, 0.5), curvature_basis(moment(12), moment(8), 0.5)
    with pytest.raises(RuntimeError, match="deterministic"):
        weight.as_subclass(OnCuda).cumsum(0)
    assert torch.equal(principal_directions(weight.as_subclass(OnCuda), 0.5), directions)
    assert torch.equal(curvature_basis(*(moment(n).as_subclass(OnCuda) for n in (12, 8)), 0.5).high, basis.high)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.95])
def test_deterministic_algorithms_suffice_to_select_the_largest_changes(keep, monkeypatch):
    update, weight = torch.randn(2, 8, 12, generator=torch.Generator().manual_seed(0))
    expected = relative_mask(update, weight, keep)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    found = relative_mask(update.as_subclass(OnCuda), weight.as_subclass(OnCuda), keep)
    assert torch.equal(found.as_subclass(torch.Tensor), expected)


def moment(size):
    """A second moment that takes no product to make."""
    steps = torch.arange(1.0, size + 1)
    return torch.minimum(steps, steps[:, None]) / size


@pytest.mark.parametrize(
    "measure",
    [
        hyperspherical_energy,
        energy_constant,
        lambda weight: principal_directions(weight, 0.5),
        lambda weight: reading_from(weight, weight.T),
        lambda weight: project_out(weight, weight.T / 8, 1.0),
        lambda weight: project_low_curvature(weight, curvature_basis(moment(12), moment(8), 0.5)),
        lambda weight: output_perturbation(weight, moment(12)),
        lambda weight: row_cosines(weight, torch.arange(4)),
        lambda weight: subspace_overlap(weight, weight),
    ],
)
def test_autocast_does_not_round_what_is_measured(measure):
    weight = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    expected = measure(weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(measure(weight), expected)
        assert (weight @ weight.T).dtype == torch.bfloat16  # and is on again afterwards


def test_a_step_within_autocast_is_projected_as_one_outside(make_trainer, make_plain, regression_batches):
    """Under manual optimisation the optimizer steps within ``training_step``, and that runs under autocast."""

    class Manual(make_plain):
        def __init__(self):
            super().__init__("SGD")
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            gradient = torch.arange(30.0).view(5, 6)
            self.net[0].weight.grad = gradient
            self.optimizers().step()

    changes = []
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        module = Manual()
        start = module.net[0].weight.detach().clone()
        make_trainer(SparseProjection(modules="net.0.*"), precision=precision).fit(module, regression_batches[:1])
        changes.append(module.net[0].weight.detach() - start)
    assert torch.equal(*changes)


def test_factors_recorded_within_autocast_are_not_rounded_again():
    layer, inputs = torch.nn.Linear(3, 2), torch.full((5, 3), 1.0078125)  # exact in bfloat16, its square is not
    with torch.autocast("cpu", torch.bfloat16), record_factors({"weight": layer}) as factors:
        layer(inputs).sum().backward()
    assert torch.equal(factors.moments()["weight"][0], torch.full((3, 3), 1.0078125**2, dtype=torch.float64))
