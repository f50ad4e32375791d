"""States held on one device and solved on another: the same edits, one matrix at a time.

No second device is here. A transfer is played by a copy, so that what is lent and what is held are tensors apart.
"""

import gc
import weakref

import lightning as L
import pytest
import torch

from sphere_pl.data.datamodule import EditLoader
from sphere_pl.editing import states as offloading
from sphere_pl.editing.guard import GuardSettings
from sphere_pl.editing.moments import StatisticsSettings, compute_second_moments
from sphere_pl.editing.states import Offload, move
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editor import SequentialEditor
from sphere_pl.errors import UserError
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.methods import MEMIT, AlphaEdit, UltraEdit
from tests.saving import SaveAt

CPU = torch.device("cpu")
LAYERS = [0, 1, 2]
METHODS = {
    "AlphaEdit": lambda: AlphaEdit(ridge=1.0, null_space_threshold=10.0),
    "MEMIT-seq": lambda: MEMIT(5.0, remember_past=True),
    "UltraEdit": lambda: UltraEdit(learning_rate=0.003),
}


@pytest.fixture
def sent(monkeypatch):
    """Weak references to all that was lent, and copies in place of transfers."""
    found = []
    original = Offload._send

    def send(self, state, device):
        coming = original(self, state, device)
        found.extend(weakref.ref(tensor) for tensor in coming.lent.values())
        return coming

    monkeypatch.setattr(offloading, "move", lambda tensor, device: torch.empty_like(tensor).copy_(tensor))
    monkeypatch.setattr(Offload, "_send", send)
    return found


@pytest.fixture
def edit(tiny_lm, requests, bare_trainer, tmp_path):
    def edit(device, make=METHODS["AlphaEdit"], callbacks=(), ckpt_path=None, **kwargs):
        corpus = tmp_path / "corpus.txt"
        corpus.write_text("The capital of France is Paris.\n\nRome is a city in Italy by the sea.")
        L.seed_everything(1, verbose=False)
        editor = SequentialEditor(
            make(),
            LAYERS,
            targets=TargetSettings(steps=4, learning_rate=0.5, clamp=4.0, weight_decay=0.0),
            statistics=StatisticsSettings(corpus=str(corpus), tokens=20, cache_dir=str(tmp_path)),
            evaluation=EvaluationSettings(perplexity_tokens=64, protocols=["teacher_forced"], cases=0, facts=0),
            contexts=1,
            statistics_device=device,
            **kwargs,
        )
        editor.lm = tiny_lm()
        bare_trainer(max_epochs=1, callbacks=list(callbacks)).fit(
            editor, EditLoader(requests, batch_size=1), ckpt_path=ckpt_path
        )
        return editor

    return edit


def large(references):
    """Matrices of about d_in x d_in that are still there."""
    gc.collect()
    return [each() for each in references if each() is not None and each().numel() > 48 * 40]


class Watch(L.Callback):
    """Counts what is lent whenever a matrix has been solved, and between batches."""

    def __init__(self, references):
        self.references, self.solving, self.between = references, [], []

    def on_before_optimizer_step(self, *_):
        self.solving.append(len(large(self.references)))

    def on_train_batch_start(self, *_):
        self.between.append(len(large(self.references)))

    on_train_batch_end = on_train_batch_start


def assert_same(first, second):
    for a, b in zip(first.weights, second.weights, strict=True):
        assert torch.equal(a, b)
    for one, other in zip(first.states, second.states, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) and one[name].stride() == other[name].stride() for name in one)


@pytest.mark.parametrize("method", METHODS)
def test_edits_with_states_held_elsewhere_are_the_same_bit_for_bit(method, edit, sent):
    held = edit("cpu", METHODS[method])
    assert sent
    assert_same(held, edit(None, METHODS[method]))


def test_nothing_of_d_in_by_d_in_stays_with_the_weights_between_matrices_and_batches(edit, sent):
    watch = Watch(sent)
    edit("cpu", lambda: MEMIT(5.0), [watch])
    # One inverse a matrix: a matrix has given its own back when its update is there, and the next one's is on its way.
    assert watch.solving == [1, 1, 0] * 4
    assert watch.between == [0] * 8


def test_a_batch_that_is_refused_leaves_nothing_lent(edit, sent):
    watch = Watch(sent)
    edit("cpu", lambda: MEMIT(5.0), [watch], guard=GuardSettings(action="skip", max_norm_ratio=1e-9, max_skipped=9))
    assert watch.between == [0] * 8


def test_a_resumed_run_with_states_held_elsewhere_is_the_uninterrupted_one(edit, sent, tmp_path):
    whole = edit("cpu", callbacks=[SaveAt(2, tmp_path / "half.ckpt")])
    assert_same(whole, edit("cpu", ckpt_path=tmp_path / "half.ckpt"))
    assert_same(whole, edit(None, ckpt_path=tmp_path / "half.ckpt"))


def test_what_a_method_left_alone_is_not_copied_back(sent):
    lender, held = Offload(CPU), {"basis": torch.ones(2), "seen": torch.zeros(1)}
    with lender.lend([held], 0, [CPU]) as lent:
        kept = lender.take_back({**lent, "seen": lent["seen"] + 1}, lent, held)
    assert kept["basis"] is held["basis"]
    assert kept["seen"] == 1


def test_the_matrix_after_sets_out_while_one_is_lent_and_a_state_changed_since_is_sent_again(sent):
    lender, states = Offload(CPU), [{"a": torch.zeros(1)}, {"a": torch.ones(1)}]
    with lender.lend(states, 0, [CPU, CPU]):
        assert len(sent) == 2
        states[1] = {"a": torch.full((1,), 7.0)}
    with lender.lend(states, 1, [CPU, CPU]) as lent:
        assert lent["a"] == 7


def test_without_a_device_of_their_own_states_are_lent_as_they_are():
    states = [{"a": torch.zeros(1)}]
    with Offload(None).lend(states, 0, [CPU]) as lent:
        assert lent is states[0]


def test_moments_summed_elsewhere_are_the_same(tiny_lm, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("Rome is a city in Italy by the sea.\n\nYou and I speak because of it.")
    lm, settings = tiny_lm(), StatisticsSettings(corpus=str(corpus), tokens=40, length=8, batch_size=1)
    here, there = (
        compute_second_moments(lm, lm.sites([1]), settings, lambda items, *_: items, home) for home in (None, CPU)
    )
    assert here.keys() == there.keys()
    for name in here:
        assert torch.equal(here[name].matrix, there[name].matrix)
        assert torch.equal(here[name].half_spectrum, there[name].half_spectrum)


def test_a_device_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"statistics_device='gpu7'. is no device. Give cpu"):
        SequentialEditor(AlphaEdit(), [1], statistics_device="gpu7")


def test_a_tensor_that_is_there_already_is_not_copied_and_one_that_moves_lies_as_before():
    tensor = torch.arange(6.0).reshape(2, 3).T
    assert move(tensor, CPU) is tensor
    moved = move(tensor, torch.device("meta"))
    assert (moved.device.type, moved.shape, moved.stride()) == ("meta", tensor.shape, tensor.stride())


def test_only_an_accelerator_fetches_beside_its_work_and_only_from_main_memory(monkeypatch):
    gpu = torch.device("meta")
    monkeypatch.setattr(offloading, "accelerator", lambda: gpu)
    assert offloading._overlaps(CPU, gpu)
    assert not offloading._overlaps(gpu, gpu)
    assert not offloading._overlaps(CPU, CPU)
    assert not offloading._overlaps(None, gpu)
    monkeypatch.setattr(offloading, "accelerator", lambda: None)
    assert not offloading._overlaps(CPU, gpu)
