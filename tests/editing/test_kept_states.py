"""What a method finds out before the first batch is found once for the same moment, method and weight."""

import pytest
import torch

from sphere_pl.editing.kept_states import arguments_of, kept_state
from sphere_pl.methods import MEMIT, AlphaEdit


@pytest.fixture
def moment():
    keys = torch.randn(64, 12, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.01, 2, 12)
    return keys.T @ keys / 64


@pytest.fixture
def state(tmp_path, moment):
    """The state of a method, and how often it was found."""

    def of(method=None, weight=None, moment=moment):
        method, found = method or AlphaEdit(), []
        weight = torch.ones(4, 12) if weight is None else weight
        kept = kept_state(
            method, weight, moment, str(tmp_path), lambda: found.append(1) or method.initial_state(weight, moment)
        )
        return kept, len(found)

    of.folder = tmp_path / "states"
    return of


def test_a_state_is_found_once_and_read_to_the_bit_then(state):
    first, found = state()
    again, found_again = state()
    assert (found, found_again) == (1, 0)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(first[name].stride() == again[name].stride() for name in first)


def test_another_argument_method_weight_or_moment_is_another_state(state, moment):
    state()
    others = [{"method": AlphaEdit(ridge=3.0)}, {"method": MEMIT()}, {"weight": torch.zeros(4, 12)}]
    assert [state(**other)[1] for other in [*others, {"moment": 2 * moment}]] == [1, 1, 1, 1]


def test_a_method_of_another_package_is_found_each_time(state):
    class Mine(AlphaEdit):
        pass

    assert [state(Mine())[1], state(Mine())[1]] == [1, 1]
    assert not state.folder.exists()


def test_methods_whose_arguments_cannot_be_compared_share_no_state(state):
    odd = AlphaEdit()
    odd.mask = torch.ones(2)
    assert [state(odd)[1], state(odd)[1]] == [1, 1]


def test_a_damaged_file_is_said_and_found_again(state, caplog):
    whole, _ = state()
    (path,) = state.folder.iterdir()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    again, found = state()
    assert found == 1
    assert "found again" in caplog.text
    assert torch.equal(again["basis"], whole["basis"])


def test_a_folder_that_cannot_be_written_is_said_and_changes_nothing(state, caplog):
    state.folder.write_text("a file")
    assert state()[0]["basis"].shape[0] == 12
    assert "found again next time" in caplog.text


def test_arguments_that_cannot_be_compared_are_none():
    odd = AlphaEdit()
    odd.mask = torch.ones(2)
    assert arguments_of(odd) is None
    assert arguments_of(AlphaEdit()) == arguments_of(AlphaEdit())
