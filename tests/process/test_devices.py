import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from sphere_pl.editing.checks import check_precision
from sphere_pl.process.devices import accelerator, accelerator_is_idle, default_device
from sphere_pl.storage.random_states import random_states, restore_random_states


@pytest.fixture
def an_accelerator(monkeypatch):
    """An accelerator that is not there."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("meta"))


@pytest.fixture
def without_a_driver(monkeypatch):
    """A PyTorch that was built for an accelerator, on a machine that has none."""

    def current(check_available=False):
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", current)


def test_the_accelerator_is_taken_if_there_is_one(an_accelerator):
    assert accelerator() == default_device() == torch.device("meta")
    assert not accelerator_is_idle()


def test_an_accelerator_without_double_precision_is_left_alone(an_accelerator, single_precision):
    single_precision("meta")
    assert accelerator() is None
    assert accelerator_is_idle()
    assert default_device() == torch.device("cpu")


def test_a_build_for_an_accelerator_without_its_driver_is_no_accelerator(without_a_driver):
    assert accelerator() is None
    assert not accelerator_is_idle()
    assert default_device() == torch.device("cpu")


def test_random_states_leave_out_an_accelerator_that_is_not_used(an_accelerator, single_precision):
    single_precision("meta")
    states = random_states()
    assert states["accelerators"] == []
    restore_random_states(states)


def test_a_trainer_on_a_device_without_double_precision_is_refused(single_precision):
    check_precision(torch.device("meta"))
    single_precision("meta")
    with pytest.raises(MisconfigurationException, match="runs on meta, which has no double precision"):
        check_precision(torch.device("meta"))
