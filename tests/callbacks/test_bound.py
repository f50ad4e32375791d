import pytest
import torch

from sphere_callbacks import PerturbationBound
from sphere_callbacks.functional import energy_constant, hyperspherical_energy


@pytest.fixture
def run(make_editing, make_trainer, make_updates, edit_stream, weights, recording_logger):
    def edit(*callbacks, transposed=False):
        module = make_editing(weights, make_updates(weights, batches=4), transposed)
        make_trainer(*callbacks, logger=recording_logger).fit(module, edit_stream(4))
        return module

    return edit


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rows", ["raw", "unit"])
def test_both_sides_follow_from_the_weights_before_and_after(run, weights, recording_logger, rows, transposed):
    module = run(PerturbationBound(rows=rows), transposed=transposed)
    expected = {"perturbation": [], "lower": [], "tightness": []}
    for before, after in zip([weights, *module.seen], module.seen, strict=False):
        moved = [float((after[n] - before[n]).norm() ** 2) for n in weights]
        changes = [float(hyperspherical_energy(after[n]) - hyperspherical_energy(before[n])) for n in weights]
        constants = [float(energy_constant(before[n], rows=rows)) for n in weights]
        lower = [(change / constant) ** 2 for change, constant in zip(changes, constants, strict=True)]
        expected["perturbation"].append(sum(moved) / 2)
        expected["lower"].append(sum(lower) / 2)
        expected["tightness"].append(sum(a / b for a, b in zip(lower, moved, strict=True)) / 2)
    for name, series in expected.items():
        assert recording_logger.series(f"bound/{name}") == pytest.approx(series, rel=1e-3)


def test_changes_are_counted_between_measurements(run, weights, recording_logger):
    module = run(PerturbationBound(every_n_batches=2))
    moved = [float((module.seen[3][n] - module.seen[1][n]).norm() ** 2) for n in weights]
    assert recording_logger.series("bound/perturbation")[-1] == pytest.approx(sum(moved) / 2, rel=1e-5)


def test_weights_that_do_not_move_have_no_tightness(make_editing, make_trainer, edit_stream, weights):
    still = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    trainer = make_trainer(PerturbationBound())
    trainer.fit(make_editing(weights, [still]), edit_stream(1))
    assert [float(trainer.callback_metrics[f"bound/{n}"]) for n in ("perturbation", "tightness")] == [0, 0]


def test_works_in_a_module_that_knows_nothing_of_editing(make_plain, make_trainer, regression_batches):
    trainer = make_trainer(PerturbationBound(rows="unit"))
    trainer.fit(make_plain("AdamW"), regression_batches)
    assert 0 < float(trainer.callback_metrics["bound/tightness"]) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"s": -1.0}, r"s=-1\.0"),
        ({"rows": "all"}, "rows='all'"),
        ({"every_n_batches": 0}, "every_n_batches=0"),
        ({"block_size": 0}, "block_size=0"),
    ],
)
def test_bad_arguments_are_refused_as_they_were_written(arguments, message):
    with pytest.raises(ValueError, match=message):
        PerturbationBound(**arguments)
