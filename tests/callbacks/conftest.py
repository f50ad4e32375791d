"""Tiny modules and trainers for the tests of sphere_callbacks: they know nothing of language models."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn


def pytest_configure(config):
    # lightning 2.6.6 builds its loaders with a constructor that torch 2.13 deprecates; every fit passes through it.
    config.addinivalue_line("filterwarnings", "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")


class Batches:
    """A loader of given batches that can resume. A plain list would count as one loader for each batch."""

    def __init__(self, batches):
        self.batches = list(batches)
        self.start = self.done = 0

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.start = state["done"]

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        self.done, self.start = self.start, 0
        while self.done < len(self.batches):
            self.done += 1
            yield self.batches[self.done - 1]

    def __getitem__(self, cut):
        return Batches(self.batches[cut])


class LayerwiseOptimizer(torch.optim.Optimizer):
    """Evaluates its closure once for each group and applies ``weight -= grad``, as sphere_pl's LayerwiseEdit does."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})
        self.active_group = 0

    def step(self, closure):
        for index, group in enumerate(self.param_groups):
            self.active_group = index
            closure()
            with torch.no_grad():
                group["params"][0].sub_(group["params"][0].grad)
            group["params"][0].grad = None


class EditingModule(pl.LightningModule):
    """Applies a given update to each of its weights in each batch; the updates are ``[d_out, d_in]``."""

    def __init__(self, weights: dict[str, Tensor], updates: list[dict[str, Tensor]], transposed: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.transposed = transposed
        self.names = list(weights)
        stored = [weight.T if transposed else weight for weight in weights.values()]
        self.masters = nn.ParameterList([nn.Parameter(weight.clone().contiguous()) for weight in stored])
        self.updates = updates
        self.seen: list[dict[str, Tensor]] = []

    @property
    def weights(self) -> dict[str, Tensor]:
        return {
            n: (p.T if self.transposed else p).detach().clone() for n, p in zip(self.names, self.masters, strict=True)
        }

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()

        def write_gradient():
            index = optimizer.active_group
            update = self.updates[int(batch)][self.names[index]]
            self.masters[index].grad = -(update.T if self.transposed else update).contiguous().clone()

        optimizer.step(write_gradient)

    def on_train_batch_end(self, *_):
        self.seen.append(self.weights)

    def configure_optimizers(self):
        groups = zip(self.names, self.masters, strict=True)
        return LayerwiseOptimizer(
            [{"params": [p], "name": name, "fan_in_fan_out": self.transposed} for name, p in groups]
        )


class PlainModule(pl.LightningModule):
    """An ordinary regression under automatic optimisation."""

    def __init__(self, optimizer: str = "AdamW") -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
        self.optimizer = optimizer

    def training_step(self, batch, batch_idx):
        inputs, outputs = batch
        return nn.functional.mse_loss(self.net(inputs), outputs)

    def configure_optimizers(self):
        return getattr(torch.optim, self.optimizer)(self.parameters(), lr=0.05)


class RecordingLogger(Logger):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[tuple[int | None, dict[str, float]]] = []
        self.images: list[tuple[str, list[Any]]] = []

    @property
    def name(self):
        return "recording"

    @property
    def version(self):
        return 0

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.metrics.append((step, dict(metrics)))

    def log_image(self, key, images, step=None):
        self.images.append((key, images))

    def series(self, name):
        return [values[name] for _, values in self.metrics if name in values]


@pytest.fixture
def make_trainer():
    """A function that makes a silent CPU trainer with the given callbacks."""

    def make(*callbacks, **options):
        defaults = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "max_epochs": 1,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
        }
        return pl.Trainer(callbacks=list(callbacks), **(defaults | options))

    return make


class SaveAfter(pl.Callback):
    """Saves a checkpoint when a number of batches is done, where ModelCheckpoint would; it must stand last."""

    def __init__(self, step, path, hook="on_train_batch_end"):
        self.step, self.path = step, path
        setattr(self, hook, self.save)

    def save(self, trainer, *_, **__):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.fixture
def save_after():
    return SaveAfter


@pytest.fixture
def recording_logger():
    return RecordingLogger()


@pytest.fixture
def make_weights():
    """A function that draws weights with unequal column scales, so that some directions dominate."""

    def make(shapes=((6, 10), (10, 6)), dtype=torch.float32, seed=0):
        generator = torch.Generator().manual_seed(seed)
        weights = {}
        for index, (d_out, d_in) in enumerate(shapes):
            scale = torch.linspace(2.0, 0.2, d_in, dtype=torch.float64)
            draw = torch.randn(d_out, d_in, generator=generator, dtype=torch.float64)
            weights[f"layers.{index}.down_proj"] = (draw * scale).to(dtype)
        return weights

    return make


@pytest.fixture
def make_updates():
    """A function that draws one update for each weight and batch."""

    def make(weights, batches=3, scale=0.05, seed=1):
        generator = torch.Generator().manual_seed(seed)
        return [
            {
                n: scale * torch.randn(w.shape, generator=generator, dtype=torch.float64).to(w)
                for n, w in weights.items()
            }
            for _ in range(batches)
        ]

    return make


@pytest.fixture
def weights(make_weights):
    return make_weights()


@pytest.fixture
def updates(make_updates, weights):
    """What `run` adds to the weights; a test module that needs others has a fixture of this name."""
    return make_updates(weights, batches=4)


@pytest.fixture
def run(make_trainer, edit_stream, weights, updates):
    """A function that edits with the given callbacks and returns the module and the trainer."""

    def edit(*callbacks, transposed=False, ckpt_path=None, **options):
        module = EditingModule(weights, updates, transposed)
        trainer = make_trainer(*callbacks, **options)
        trainer.fit(module, edit_stream(len(updates)), ckpt_path=ckpt_path)
        return module, trainer

    return edit


@pytest.fixture
def make_editing():
    return EditingModule


@pytest.fixture
def make_plain():
    return PlainModule


@pytest.fixture
def edit_stream():
    """A function that makes the batches of an editing run: their indices."""
    return lambda batches: Batches(torch.tensor(i) for i in range(batches))


@pytest.fixture
def regression_batches():
    generator = torch.Generator().manual_seed(3)
    return Batches((torch.randn(4, 6, generator=generator), torch.randn(4, 3, generator=generator)) for _ in range(4))
