"""Products of 16-bit weights are as exact as PyTorch's, whichever way this processor takes them."""

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from sphere_pl.model import products as module
from sphere_pl.model.loading import load_language_model
from sphere_pl.model.products import fast_products, widen_products

LAYOUTS = pytest.mark.skipif(not module.knows_layouts(), reason="this processor has no bfloat16 products")
WAYS = [pytest.param(True, marks=LAYOUTS, id="layouts"), pytest.param(False, id="float32")]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """What a processor with units does, and one without."""
    monkeypatch.setattr(module, "has_units", lambda dtype: request.param)


@pytest.fixture
def no_units(monkeypatch):
    """A processor without units for 16 bits."""
    monkeypatch.setattr(module, "has_units", lambda dtype: False)


def run(lm):
    """Logits and the gradient at what enters block 1."""
    ids = torch.arange(24).reshape(2, 12)
    positions = torch.arange(12).expand(2, 12)
    calls = lm.block_calls(ids, torch.ones_like(ids), positions)
    hidden = lm.run(calls.hidden, calls, 0, 1).detach().requires_grad_()
    logits = lm.logits(lm.run(hidden, calls, 1, lm.n_layers))
    return logits.detach(), torch.autograd.grad(logits.square().sum(), hidden)[0]


def touched(lm):
    return [each for each in lm.model.modules() if "forward" in vars(each)]


def room_for(monkeypatch, size):
    monkeypatch.setattr(module, "free_memory", lambda device: size / module.SHARE)


ZEN_4 = {"cpu_name": "AMD EPYC", "avx512_f": True, "avx512_bf16": True, "avx512_fp16": False, "amx_bf16": False}
SAPPHIRE_RAPIDS = {**ZEN_4, "cpu_name": "Intel Xeon Platinum 8480C", "avx512_fp16": True, "amx_bf16": True}
HIDDEN = {**SAPPHIRE_RAPIDS, "cpu_name": "Intel Xeon", "amx_bf16": False}


@pytest.mark.parametrize(
    ("processor", "limit", "halved"),
    [
        pytest.param(SAPPHIRE_RAPIDS, "", False, id="matrix units"),
        pytest.param(SAPPHIRE_RAPIDS, "AVX10_1_512_AMX", False, id="matrix units that are asked for"),
        pytest.param(SAPPHIRE_RAPIDS, "AVX512_CORE_BF16", True, id="matrix units that are left out"),
        pytest.param(HIDDEN, "", True, id="hidden matrix units"),
        pytest.param(ZEN_4, "", False, id="AMD's AVX512-BF16"),
        pytest.param({**ZEN_4, "avx512_fp16": True}, "", False, id="AMD's AVX512-FP16"),
        pytest.param({**HIDDEN, "avx512_fp16": False}, "", False, id="Cooper Lake"),
        pytest.param({"cpu_name": "Intel Xeon", "avx512_f": True}, "", True, id="AVX512 without bfloat16"),
        pytest.param({"cpu_name": "Neoverse V1", "architecture": "aarch64", "bf16": True}, "", False, id="ARM"),
    ],
)
def test_bfloat16_is_multiplied_in_float32_where_that_is_faster(processor, limit, halved, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    monkeypatch.setattr(module, "_is_by_library", lambda dtype: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    assert module.has_units(torch.bfloat16) != halved
    assert module.has_units(torch.float16)


@LAYOUTS
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma2"])
def test_by_layouts_all_is_the_same_to_the_bit_and_nothing_stays_behind(tiny_lm, family, monkeypatch):
    monkeypatch.setattr(module, "has_units", lambda dtype: True)
    lm = tiny_lm(family, dtype=torch.bfloat16)
    plain = run(lm)
    edited = [site.module for site in lm.sites([0])]
    with fast_products(lm, edited):
        changed = touched(lm)
        in_blocks = [each for each in changed if each is not lm.model.get_output_embeddings()]
        assert len(in_blocks) == len(changed) - 1
        assert bool(in_blocks) == (family != "gpt2")  # whose maps in blocks are of another class
        assert not any(each is other for each in changed for other in edited)
        found = run(lm)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    assert not touched(lm)


@pytest.mark.usefixtures("no_units")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "bias"), [(nn.Linear, True), (nn.Linear, False), (Conv1D, True)])
@pytest.mark.parametrize("copied", [True, False])
def test_without_units_a_product_and_its_gradient_are_rounded_once(dtype, kind, bias, copied, monkeypatch):
    monkeypatch.setattr(module, "_PIECE", 24 * 7)  # seven rows of a weight at a time
    torch.manual_seed(0)
    layer = nn.Linear(24, 40, bias) if kind is nn.Linear else Conv1D(40, 24)
    layer.to(dtype).requires_grad_(False)
    states = torch.randn(3, 5, 24).to(dtype).requires_grad_()
    pull = torch.randn(3, 5, 40).to(dtype)
    layer.forward = module._Forward(layer, module._held(layer) if copied else module._as_it_is(layer))
    product = layer(states)
    product.backward(pull)

    weight = layer.weight.double() if kind is nn.Linear else layer.weight.double().T
    exact = states.detach().double() @ weight.T + (layer.bias.double() if bias else 0.0)
    ulp = torch.finfo(dtype).eps
    for found, expected in ((product, exact), (states.grad, pull.double() @ weight)):
        assert found.dtype == dtype
        assert ((found.double() - expected).abs() <= 0.51 * ulp * expected.abs() + 1e-6).all()


@pytest.mark.usefixtures("no_units")
@pytest.mark.parametrize("by_library", [True, False])
@pytest.mark.parametrize(("kind", "bias"), [(nn.Linear, True), (nn.Linear, False), (Conv1D, True)])
def test_a_few_rows_are_pytorchs_own_products_where_it_has_a_library(by_library, kind, bias, monkeypatch):
    monkeypatch.setattr(module, "_is_by_library", lambda dtype: by_library)
    torch.manual_seed(0)
    layer = nn.Linear(24, 40, bias) if kind is nn.Linear else Conv1D(40, 24)
    layer.to(torch.bfloat16).requires_grad_(False)
    widened = []
    monkeypatch.setattr(module._Widened, "_pieces", lambda self, weight: widened.append(weight) or [torch.ones(40, 24)])
    products = module._as_it_is(layer)
    for rows in (1, 8, 9):
        states = torch.randn(rows, 24).bfloat16()
        found = products.times(states, layer.weight, layer.bias)
        if by_library and rows <= 8:
            assert torch.equal(found, layer(states))
            assert not widened
    assert len(widened) == (1 if by_library else 3)


@pytest.mark.usefixtures("no_units")
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma2"])
def test_without_units_room_for_copies_changes_no_bit(tiny_lm, family, monkeypatch):
    lm = tiny_lm(family, dtype=torch.bfloat16)
    plain = run(lm)
    found = []
    for room in (float("inf"), 0.0):
        room_for(monkeypatch, room)
        with fast_products(lm, [site.module for site in lm.sites([0])]):
            assert len(touched(lm)) > 4 * lm.n_layers
            found.append(run(lm))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    for each, expected in zip(found[0], plain, strict=True):
        assert torch.linalg.vector_norm(each - expected) < 0.02 * torch.linalg.vector_norm(expected.float())
    assert not touched(lm)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("how", ["in place", "another one", "to be trained"])
def test_a_weight_that_is_changed_all_the_same_counts_as_it_is(tiny_lm, how):
    lm = tiny_lm(dtype=torch.bfloat16)
    changing = lm.block(1).self_attn.q_proj
    with fast_products(lm):
        before = run(lm)
        if how == "in place":
            changing.weight.mul_(2.0)
        elif how == "another one":
            changing.weight = torch.nn.Parameter(2 * changing.weight.detach(), requires_grad=False)
        else:
            changing.weight.requires_grad_(True)
        found = run(lm)
        if how == "to be trained":
            assert changing(input=torch.ones(1, changing.in_features, dtype=torch.bfloat16)).requires_grad
    plain = run(lm)
    for each, expected in zip(found, plain, strict=True):
        assert torch.linalg.vector_norm(each - expected) < 0.02 * torch.linalg.vector_norm(expected.float())
    unchanged = torch.linalg.vector_norm(found[0] - before[0]) < 0.02 * torch.linalg.vector_norm(before[0])
    assert unchanged == (how == "to be trained")


@pytest.mark.usefixtures("no_units")
def test_what_is_edited_may_change_in_any_way(tiny_lm):
    lm = tiny_lm(dtype=torch.bfloat16)
    edited = lm.sites([1])[0].module
    states = torch.randn(2, edited.in_features).to(torch.bfloat16)
    with fast_products(lm, [edited]):
        before = edited(states)
        edited.weight.data.mul_(2.0)
        assert torch.equal(edited(states), 2.0 * before)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("again", [copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))])
def test_a_block_that_is_copied_or_stored_meanwhile_is_an_ordinary_one(tiny_lm, again):
    lm = tiny_lm(dtype=torch.bfloat16)
    states = torch.randn(2, 3, lm.config.hidden_size).to(torch.bfloat16)
    with fast_products(lm):
        expected, other = lm.block(1).mlp(states), again(lm.block(1).mlp)
        torch.testing.assert_close(lm.block(1).mlp.up_proj(input=states), other.up_proj(states))
        widen_products(other)  # takes it for the ordinary block that it is
    torch.testing.assert_close(other(states), expected)
    other.up_proj.weight.data.mul_(2.0)  # which copies would not see
    assert not torch.allclose(other(states), expected)
    torch.testing.assert_close(lm.block(1).mlp(states), expected)


@pytest.mark.usefixtures("way")
def test_only_what_fits_is_copied_what_gradients_go_through_first(tiny_lm, monkeypatch):
    lm = tiny_lm(dtype=torch.bfloat16)
    head, last = lm.model.get_output_embeddings(), lm.block(lm.n_layers - 1).self_attn.q_proj
    room_for(monkeypatch, 2 * head.weight.nbytes + 2.5 * last.weight.nbytes)  # these two, twice, and not the next ones
    held = []
    monkeypatch.setattr(module, "_held", lambda each: held.append(each) or module._as_it_is(each))
    with fast_products(lm):
        pass
    assert len(held) == 2
    assert held[0] is head
    assert held[1] is last


def test_other_types_are_left_as_they_are(tiny_lm):
    lm = tiny_lm()
    with fast_products(lm):
        assert not touched(lm)


@pytest.mark.usefixtures("no_units")
def test_a_model_that_is_loaded_is_fast_from_the_start_and_after_a_run(model_folder, monkeypatch):
    lm = load_language_model(str(model_folder), dtype="bfloat16")
    first = {id(each): each.forward for each in touched(lm)}
    assert id(lm.model.get_output_embeddings()) in first
    room_for(monkeypatch, float("inf"))
    with fast_products(lm):
        assert all(each.forward is not first[id(each)] for each in touched(lm))
    assert {id(each): each.forward for each in touched(lm)} == first


@pytest.mark.usefixtures("no_units")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loaded_model_that_becomes_wider_loses_no_digit(model_folder, dtype):
    widened = load_language_model(str(model_folder), dtype="bfloat16")
    widened.model.to(dtype)
    plain = copy.deepcopy(widened)
    for each in touched(plain):
        del each.forward
    for found, expected in zip(run(widened), run(plain), strict=True):
        assert torch.equal(found, expected)


def test_a_loaded_model_is_left_alone_where_the_processor_has_units(model_folder, monkeypatch):
    monkeypatch.setattr(module, "has_units", lambda dtype: True)
    assert not touched(load_language_model(str(model_folder), dtype="bfloat16"))
