"""What the callbacks share: weights that join the optimizers late, and updates that cannot be looked at."""

import logging

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import BaseFinetuning

from sphere_callbacks import (
    CollapseGuard,
    CurvatureProjection,
    HypersphericalEnergy,
    Loop,
    PerturbationBound,
    PrincipalDirections,
    PrincipalShares,
    RelativeMask,
    SparseProjection,
    SpectrumRestraint,
    WeightGeometry,
)
from sphere_callbacks.functional import hyperspherical_energy, principal_directions

LATE = "net.0.weight"


class Unfreeze(BaseFinetuning):
    """Lets the first layer join at the second epoch."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer)


@pytest.fixture
def fit(make_plain, make_trainer, regression_batches):
    """A function that fits with a late layer and returns the module and what that layer was before."""

    class Late(make_plain):
        def configure_optimizers(self):
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.5)

        def validation_step(self, batch, batch_idx):
            pass

    def run(*callbacks, **options):
        torch.manual_seed(0)
        module = Late()
        start = module.net[0].weight.detach().clone()
        # Behind the callbacks of this package: a list in this order must do as well.
        make_trainer(*callbacks, Unfreeze(), max_epochs=3, **options).fit(
            module, regression_batches, regression_batches
        )
        return module, start

    return run


def test_the_energy_of_a_weight_that_joins_late_counts_from_before_its_first_update(fit):
    energy = HypersphericalEnergy()
    module, start = fit(energy)
    assert energy.initial[LATE] == pytest.approx(float(hyperspherical_energy(start)))
    assert energy.latest[LATE] == pytest.approx(float(hyperspherical_energy(module.net[0].weight)))
    assert energy.summary()[LATE]["before"] != energy.summary()[LATE]["after"]


def test_pretrained_directions_of_a_weight_that_joins_late_are_those_of_before_its_first_update(fit):
    projection = SparseProjection(basis="pretrained", strength=1.0)
    module, start = fit(projection)
    directions = principal_directions(start, 0.5)
    assert torch.equal(projection._bases[LATE][0], directions)
    change = module.net[0].weight.detach() - start
    assert float(change.norm()) > 1e-3
    assert float((change @ directions).norm()) < 1e-5


def test_what_is_kept_of_a_weight_that_joins_late_is_that_of_before_its_first_update(fit, tmp_path):
    shares, restraint = PrincipalShares(), SpectrumRestraint()
    directions, geometry = PrincipalDirections(), WeightGeometry(every_n_batches=100, output_dir=str(tmp_path))
    _, start = fit(shares, restraint, directions, geometry)
    assert torch.equal(shares._origin[LATE], start)
    assert torch.equal(restraint._originals[LATE].weight, start)
    assert torch.equal(directions._start[LATE], principal_directions(start, 0.5))
    assert torch.equal(geometry._start[LATE], start)


def test_a_guard_rolls_back_a_weight_that_joins_late(fit):
    module, start = fit(CollapseGuard(max_weight_growth=1e-6, action="rollback"))
    assert torch.equal(module.net[0].weight.detach(), start)


def test_a_bound_follows_a_weight_that_joins_late(fit):
    bound = PerturbationBound()
    module, _ = fit(bound)
    before, energy = bound._before[LATE]
    assert torch.equal(before, module.net[0].weight.detach())
    assert float(energy) == pytest.approx(float(hyperspherical_energy(before)))


def test_factors_are_asked_for_again_when_a_weight_joins(fit):
    factors = {LATE: (torch.eye(6), torch.eye(5)), "net.2.weight": (torch.eye(5), torch.eye(3))}
    callback = CurvatureProjection(factors=factors)
    fit(callback)
    assert callback._bases.keys() == factors.keys()


@pytest.mark.parametrize(
    "callback",
    [SparseProjection(basis="pretrained"), PrincipalShares(), CurvatureProjection(factors={})],
    ids=lambda callback: type(callback).__name__,
)
def test_an_update_of_a_weight_that_was_never_recorded_is_refused_with_the_hooks_to_call(callback):
    model = torch.nn.Linear(3, 2)
    model.weight.grad = torch.ones(2, 3)
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(
        RuntimeError, match=r"knows nothing of `weight` before its first update\. Call `on_train_start`"
    ):
        callback.on_before_optimizer_step(Loop([optimizer]), model, optimizer)


@pytest.mark.parametrize(
    "callback", [SparseProjection(), RelativeMask(), PrincipalShares()], ids=lambda callback: type(callback).__name__
)
def test_a_sparse_gradient_is_refused_with_what_to_do(callback):
    model = torch.nn.Embedding(5, 3, sparse=True)
    loop = Loop([torch.optim.SGD(model.parameters())])
    callback.on_train_start(loop, model)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match=r"`weight` has a sparse gradient.*`sparse=False`"):
        callback.on_before_optimizer_step(loop, model, loop.optimizers[0])


def test_a_resumed_summary_holds_what_is_looked_at_now(run, save_after, tmp_path):
    run(HypersphericalEnergy(), save_after(2, tmp_path / "two.ckpt"))
    narrow = HypersphericalEnergy(modules="layers.0.*")
    run(narrow, ckpt_path=tmp_path / "two.ckpt")
    assert list(narrow.summary()) == ["layers.0.down_proj"]


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (HypersphericalEnergy(), HypersphericalEnergy(s=0.0), r"Energy\(s=0\.0\)` resumes .* by `.*Energy\(s=2\.0\)`"),
        (PrincipalDirections(0.5), PrincipalDirections(0.9), r"cumulative_ratio=0\.9\)` resumes .*=0\.5\)`"),
        (WeightGeometry(rows=4, output_dir="."), WeightGeometry(rows=5, output_dir="."), r"rows=5\)` .*rows=4\)`"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_other_arguments_kept_of_the_start_is_refused(run, save_after, tmp_path, monkeypatch, first, second, said):
    monkeypatch.chdir(tmp_path)
    run(first, save_after(2, tmp_path / "two.ckpt"))
    with pytest.raises(MisconfigurationException, match=said):
        run(second, ckpt_path=tmp_path / "two.ckpt")


def test_a_batch_at_which_a_fit_broke_off_is_not_logged_by_the_next(
    make_plain, make_trainer, regression_batches, recording_logger
):
    class Breaks(make_plain):
        def on_before_optimizer_step(self, optimizer):
            if self.breaks:
                raise RuntimeError("broke off")

    factors = {"net.0.weight": (torch.eye(6), torch.eye(5)), "net.2.weight": (torch.eye(5), torch.eye(3))}
    callbacks = [RelativeMask(), CurvatureProjection(factors=factors), SparseProjection()]
    module, logged = Breaks(), []
    start = {name: value.clone() for name, value in module.state_dict().items()}
    for module.breaks, batches in (
        (False, regression_batches),
        (True, regression_batches[2:]),
        (False, regression_batches),
    ):
        module.load_state_dict(start)
        trainer = make_trainer(*callbacks, logger=recording_logger)
        if module.breaks:
            with pytest.raises(RuntimeError, match="broke off"):
                trainer.fit(module, batches)
        else:
            recording_logger.metrics.clear()
            trainer.fit(module, batches)
            logged.append(recording_logger.metrics[0])
    assert logged[0] == logged[1]


def test_two_callbacks_that_log_under_the_same_names_are_named(make_plain, make_trainer, regression_batches, caplog):
    callbacks = [PerturbationBound(rows="raw"), PerturbationBound(rows="unit")]
    with caplog.at_level(logging.WARNING, logger="sphere_callbacks.bound"):
        make_trainer(*callbacks).fit(make_plain(), regression_batches)
    assert [record.getMessage()[:63] for record in caplog.records] == [
        "`PerturbationBound` stands 2 times in `trainer.callbacks`. Each"
    ]
