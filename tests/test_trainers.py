from types import SimpleNamespace

import lightning as L
import pytest

from sphere_pl.progress import EditProgress
from sphere_pl.trainers import callbacks_of, is_last_step


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
