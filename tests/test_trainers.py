from types import SimpleNamespace

import lightning as L
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel

from sphere_pl.progress import EditProgress
from sphere_pl.trainers import callbacks_of, is_last_step, validation_follows


def test_callbacks_of_a_kind_keep_their_order():
    first, second = EditProgress(quiet=True), EditProgress(quiet=True)
    trainer = SimpleNamespace(callbacks=[first, L.Callback(), second])
    assert callbacks_of(trainer, EditProgress) == [first, second]


@pytest.mark.parametrize(
    ("is_last_batch", "should_stop", "max_steps", "expected"),
    [(True, False, -1, True), (False, True, -1, True), (False, False, 3, True), (False, False, -1, False)],
)
def test_the_last_step_ends_the_epoch_the_run_or_the_allowed_steps(is_last_batch, should_stop, max_steps, expected):
    trainer = SimpleNamespace(is_last_batch=is_last_batch, should_stop=should_stop, max_steps=max_steps, global_step=3)
    assert is_last_step(trainer) is expected


class Foreseen(L.Callback):
    """Notes of each batch whether a validation was said to follow it, and whether one did."""

    def __init__(self):
        self.said, self.came = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.said.append(validation_follows(trainer, batch_idx))
        self.came.append(False)

    def on_validation_start(self, trainer, pl_module):
        self.came[-1] = True


@pytest.mark.parametrize(
    "options",
    [
        {"val_check_interval": 2, "check_val_every_n_epoch": None, "max_epochs": 2},
        {"val_check_interval": 5, "max_epochs": 2},
        {"val_check_interval": 1.0, "max_epochs": 1},
        {"val_check_interval": 1, "limit_val_batches": 0, "max_epochs": 1},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*without a logger")
def test_a_validation_is_foreseen_where_one_comes(bare_trainer, options):
    foreseen = Foreseen()
    bare_trainer(callbacks=[foreseen], limit_train_batches=5, **{"limit_val_batches": 1, **options}).fit(BoringModel())
    assert foreseen.said == foreseen.came
    assert len(foreseen.said) == 5 * options["max_epochs"]
    assert any(foreseen.came) == (options.get("limit_val_batches") != 0)
