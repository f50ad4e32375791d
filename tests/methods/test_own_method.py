"""A method and a callback of a user's own, named by its path in YAML: nothing in the package changes."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from sphere_pl.commands import main

CLOSED_FORM = '''
import torch
from sphere_pl.methods import Method


class Ridge(Method):
    """Least squares with a bound on the update's norm, and nothing else.

    Args:
        ridge: Weight of the norm.
    """

    needs_second_moment = False

    def __init__(self, ridge: float = 1.0) -> None:
        self.ridge = ridge

    def initial_state(self, weight, second_moment):
        return {}

    def update(self, problem, state):
        keys = problem.keys
        system = keys @ keys.T + self.ridge * torch.eye(len(keys), device=keys.device)
        return torch.linalg.solve(system, problem.residuals).T @ keys
'''

LIKELIHOOD = '''
import torch
from sphere_pl.methods import Method


class OneStep(Method):
    """One step down the gradient.

    Args:
        rate: Its length.
    """

    needs_targets = False
    needs_second_moment = False

    def __init__(self, rate: float = 0.1) -> None:
        self.rate = rate

    def initial_state(self, weight, second_moment):
        return {}

    def update(self, problem, state):
        _, gradient = problem.loss_and_gradient(problem.weight, torch.arange(len(problem)))
        return -self.rate * gradient
'''

CALLBACK = '''
import lightning as L


class Nothing(L.Callback):
    """Turn every update into nothing."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for group in optimizer.param_groups:
            if group["params"][0].grad is not None:
                group["params"][0].grad.zero_()
'''

CONFIG = """
model:
  method:
    class_path: {path}
    init_args:
      {argument}: 0.5
  name: {model}
  layers: [1, 2]
  dtype: float32
  contexts: 1
  targets:
    steps: 3
  evaluation:
    perplexity_tokens: 32
data:
  name: counterfact
  path: {facts}
  batch_size: 1
trainer:
  accelerator: cpu
  callbacks: {callbacks}
run_dir: {run}
"""


@pytest.fixture
def facts(tmp_path):
    rewrite = {
        "prompt": "The capital of {} is",
        "subject": "France",
        "target_new": {"str": "Berlin"},
        "target_true": {"str": "Paris"},
    }
    records = [{"case_id": i, "requested_rewrite": rewrite, "paraphrase_prompts": []} for i in range(2)]
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(records))
    return path


@pytest.fixture
def fit(monkeypatch, tmp_path, model_folder, facts):
    """Run a configuration file in a folder that holds the user's modules; returns the run's folder."""

    def run(path, argument, callbacks="null"):
        places = {"model": model_folder, "facts": facts, "run": tmp_path / "run"}
        (tmp_path / "mine.yaml").write_text(CONFIG.format(path=path, argument=argument, callbacks=callbacks, **places))
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("WANDB_MODE", "disabled")
        monkeypatch.setattr(sys, "argv", ["sphere_pl", "fit", "--config", "mine.yaml", "--quiet", "true"])
        main()
        return tmp_path / "run"

    return run


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("code", "name", "argument"), [(CLOSED_FORM, "Ridge", "ridge"), (LIKELIHOOD, "OneStep", "rate")]
)
def test_a_users_own_method_runs_from_yaml(fit, tmp_path, code, name, argument):
    module = f"own_{name.lower()}"
    (tmp_path / f"{module}.py").write_text(code)
    run = fit(f"{module}.{name}", argument)
    assert json.loads((run / "results.json").read_text())["method"] == f"{name} + SPHERE"
    edited = load_file(run / "edited.safetensors")
    assert len(edited) == 2
    assert all(torch.isfinite(weight).all() for weight in edited.values())


@pytest.mark.filterwarnings("ignore")
def test_a_users_own_callback_acts_from_yaml(fit, tmp_path, tiny_lm):
    (tmp_path / "own_callback.py").write_text(CALLBACK)
    run = fit("sphere_pl.methods.UltraEdit", "learning_rate", callbacks="[{class_path: own_callback.Nothing}]")
    unedited = tiny_lm().model
    for name, weight in load_file(run / "edited.safetensors").items():
        assert torch.equal(weight, unedited.get_parameter(name))
