"""Checkpoint files: what goes in comes out, damage is noticed, and nothing in them can run."""

import pickle

import pytest
import torch

from sphere_pl.errors import UserError
from sphere_pl.storage.checkpoint_file import DamagedCheckpointError, read_checkpoint, write_checkpoint


def test_everything_a_run_keeps_comes_back_as_it_was(tmp_path):
    weight = torch.randn(3, 4)
    kept = {
        "plain": [1, 2.5, None, True, "text", (1, ("x",))],
        7: {"twice": weight, "same": weight, "turned": weight.T, "row": weight[1], "none": torch.zeros(0)},
        "kinds": [torch.tensor(3), torch.ones(2, dtype=torch.bfloat16), torch.get_rng_state(), torch.tensor([True])],
        "numbers": {"inf": float("inf"), 1e-300: -0.0},
    }
    write_checkpoint(kept, tmp_path / "file")
    found = read_checkpoint(tmp_path / "file")
    assert found["plain"] == kept["plain"]
    assert found["numbers"] == kept["numbers"]
    assert list(found) == list(kept)
    for name, tensor in kept[7].items():
        assert torch.equal(found[7][name], tensor)
    for one, other in zip(found["kinds"], kept["kinds"], strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_tensors_lie_in_memory_as_they_did(tmp_path):
    kept = {"row": torch.randn(3, 4), "column": torch.randn(4, 3).T, "three": torch.randn(2, 3, 4).permute(2, 0, 1)}
    write_checkpoint(kept, tmp_path / "file")
    found = read_checkpoint(tmp_path / "file")
    for name, tensor in kept.items():
        assert torch.equal(found[name], tensor)
        assert found[name].stride() == tensor.stride()
        assert found[name].data_ptr() % 64 == 0


def test_what_cannot_be_loaded_without_running_code_is_not_saved(tmp_path):
    with pytest.raises(TypeError, match=r"checkpoint\['callback'\]\[0\] is a object"):
        write_checkpoint({"callback": [object()]}, tmp_path / "file")
    with pytest.raises(TypeError, match="no plain value"):
        write_checkpoint({(1, 2): 3}, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_every_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "file"
    write_checkpoint({"a": torch.arange(6.0), "b": [1, "x"]}, path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            found = read_checkpoint(path)
        except DamagedCheckpointError:
            continue
        # A flip in the padding or in the spelling of the header changes nothing that is read.
        assert torch.equal(found["a"], torch.arange(6.0))
        assert found["b"] == [1, "x"]


@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, -1])
def test_a_torn_file_is_noticed(tmp_path, length):
    path = tmp_path / "file"
    write_checkpoint({"a": torch.arange(600.0)}, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=f"{path} is not a checkpoint"):
        read_checkpoint(path)


def test_a_pickle_is_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    for name, write in (("plain", lambda path: path.write_bytes(pickle.dumps({"x": Trap()}))),
                        ("torch", lambda path: torch.save({"x": Trap()}, path))):  # fmt: skip
        write(tmp_path / name)
        with pytest.raises(UserError, match="is not a checkpoint"):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "sprung").exists()
