"""Edits taken out of a run."""

import pytest
import torch

from sphere_callbacks import RelativeMask
from sphere_pl.errors import UserError
from sphere_pl.history.log import read_log
from sphere_pl.history.replay import solve_without
from sphere_pl.history.saved import SavedRun

CLOSED_FORM = ["AlphaEdit", "MEMIT", "MEMIT-seq", "EMMET", "ROME"]


def solve(run, cases, last=None):
    saved = SavedRun.open(run.folder)
    return solve_without(saved, saved.load_base(), cases, last or len(saved.history.entries))


def close(solved, live, rtol=1e-3):
    for name, weight in live.items():
        torch.testing.assert_close(solved[name], weight, rtol=rtol, atol=2e-5)


@pytest.mark.parametrize("method", CLOSED_FORM)
@pytest.mark.parametrize("sphere", [{"strength": 0.8}, {"strength": 0.8, "when": "step", "basis": "pretrained"}])
def test_without_the_last_batchs_only_record_the_run_is_the_one_without_it(fit, requests, method, sphere):
    records = requests[:3]  # of batches of two, the last holds one
    whole = fit("whole", method, sphere=sphere, records=records)
    shorter = fit("shorter", method, sphere=sphere, records=records[:2])
    close(solve(whole, ["2"]), shorter.live)
    assert any(not torch.allclose(whole.live[n], w, atol=1e-4) for n, w in shorter.live.items())


def test_without_it_on_gpt2_whose_weights_are_transposed(fit, requests):
    whole = fit("whole", model_type="gpt2", records=requests[:3])
    close(solve(whole, ["2"]), fit("shorter", model_type="gpt2", records=requests[:2]).live)


def test_masks_are_part_of_what_is_solved_again(fit, requests):
    mask = {"callbacks": [RelativeMask(keep=0.4)], "sphere": {"strength": 0.8}}
    whole = fit("whole", records=requests[:3], **mask)
    shorter = fit("shorter", records=requests[:2], callbacks=[RelativeMask(keep=0.4)], sphere={"strength": 0.8})
    close(solve(whole, ["2"]), shorter.live)


def test_the_first_matrix_of_the_last_batch_is_solved_exactly_without_one_of_its_rows(fit, requests):
    whole = fit("whole", records=requests)
    without = fit("without", records=requests[:3])
    first = whole.editor.sites[0].name
    close({first: solve(whole, ["3"])[first]}, {first: without.live[first]})


def alphaedit(keys, residuals, past, basis, ridge):
    """The paper's formula in full, float64: `Δ = R Kᵀ P (K Kᵀ P + M P + λ I)⁻¹`, one key a row here."""
    keys, residuals, past, basis = (tensor.double() for tensor in (keys, residuals, past, basis))
    projector = basis @ basis.T
    system = projector @ (keys.T @ keys + past.T @ past) + ridge * torch.eye(len(projector), dtype=torch.float64)
    return torch.linalg.solve(system, projector @ keys.T @ residuals).T.float()


def test_an_early_edit_leaves_keys_memory_and_update(fit):
    """The formula by hand: rows of the first batch dropped, the second batch solved against what remains."""
    run = fit()
    saved = SavedRun.open(run.folder)
    base, history = saved.load_base().weights, read_log(run.folder)
    solved = solve(run, ["0"])
    tensors = [history.tensors(entry) for entry in history.entries]
    for index, name in enumerate(base):
        basis = run.editor.states[index]["basis"]
        keys, residuals = ([t[f"{kind}/{name}"] for t in tensors] for kind in ("keys", "residuals"))
        past = tensors[0][f"remembered/{name}"][1:]
        expected = base[name] + alphaedit(keys[0][1:], residuals[0][1:], past[:0], basis, 1.0)
        expected = expected + alphaedit(keys[1], residuals[1], past, basis, 1.0)
        torch.testing.assert_close(solved[name], expected, rtol=1e-4, atol=1e-5)


def test_a_callback_that_the_configuration_does_not_name_is_noticed(fit):
    import lightning as L

    class Half(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            for weight in pl_module.weights:
                if weight.grad is not None:
                    weight.grad.mul_(0.5)

    with pytest.raises(UserError, match=r"does not give the change .*callback of your own"):
        solve(fit(callbacks=[Half()]), ["2"])


def test_a_batch_that_was_rolled_back_stays_so(fit, worse):
    from sphere_callbacks import CollapseGuard

    guard = CollapseGuard(above={"harm": 0.5}, action="rollback", check="validation")
    run = fit("run", "ROME", callbacks=[worse({2}, "validation"), guard], val_check_interval=1)
    assert guard.crossings == 1
    base = SavedRun.open(run.folder).load_base().weights
    solved = solve(run, ["3"])
    name = next(iter(base))
    once = solve(run, ["1", "3"])  # the second batch was undone, so leaving its edit out changes nothing
    torch.testing.assert_close(solved[name], once[name], rtol=1e-6, atol=1e-6)
