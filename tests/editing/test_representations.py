import pytest
import torch

from sphere_pl.editing.representations import SubjectStream, capture_input, input_of
from sphere_pl.model.tokens import in_context, tokenize
from tests.others import flatten_tokens

CONTEXTS = ["", "You and I. ", "Therefore a pianist. "]


def literal_key(lm, request, contexts, site):
    """One full forward a context, nothing cut or padded; half the weight on the plain prompt."""
    keys = []
    for context in contexts:
        (tokens,) = tokenize(lm.tokenizer, [in_context(request, context)])
        with capture_input(site.module) as inputs, torch.no_grad():
            lm.model(input_ids=torch.tensor([tokens.ids]))
        keys.append(inputs[0][0, tokens.subject_last])
    return 0.5 * keys[0] + 0.5 * torch.stack(keys[1:]).mean(0)


def literal_value(lm, request, layer):
    (tokens,) = tokenize(lm.tokenizer, [in_context(request)])
    outputs = []
    handle = lm.block(layer).register_forward_hook(lambda _, __, out: outputs.append(out))
    with torch.no_grad():
        lm.model(input_ids=torch.tensor([tokens.ids]))
    handle.remove()
    out = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
    return out[0, tokens.subject_last]


@pytest.mark.parametrize("bos", [False, True])
def test_keys_and_values_are_those_of_plain_forwards(tiny_lm, family, requests, bos):
    lm = tiny_lm(family, bos=bos)
    stream = SubjectStream(lm, requests, CONTEXTS, 1, max_tokens=20)
    plain = SubjectStream(lm, requests, [""], 1)
    for site in lm.sites([1, 2]):
        expected = torch.stack([literal_key(lm, request, CONTEXTS, site) for request in requests])
        torch.testing.assert_close(stream.keys(site), expected, rtol=1e-4, atol=1e-4)
        plain.advance(site.layer)
        expected = torch.stack([literal_value(lm, request, 2) for request in requests])
        torch.testing.assert_close(plain.values(2), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(stream.values(2), expected, rtol=1e-4, atol=1e-4)


def test_keys_follow_the_weights_of_the_layers_before(tiny_lm, requests):
    lm = tiny_lm()
    first, second = lm.sites([1, 2])
    stream = SubjectStream(lm, requests, CONTEXTS, 1)
    stream.keys(first)
    first.write(first.read() * 1.5)
    expected = torch.stack([literal_key(lm, request, CONTEXTS, second) for request in requests])
    torch.testing.assert_close(stream.keys(second), expected, rtol=1e-4, atol=1e-4)


def test_rewinding_gives_the_first_layers_keys_again(tiny_lm, requests):
    lm = tiny_lm()
    first, second = lm.sites([1, 2])
    stream = SubjectStream(lm, requests, CONTEXTS, 1)
    keys = stream.keys(first)
    stream.keys(second)
    stream.rewind()
    assert torch.equal(stream.keys(first), keys)


def test_all_keys_in_one_pass_are_those_taken_one_by_one(tiny_lm, family, requests):
    lm = tiny_lm(family)
    sites = lm.sites([1, 3])
    stream = SubjectStream(lm, requests, CONTEXTS, 1)
    expected = [stream.keys(site) for site in sites]
    for found, each in zip(stream.all_keys(sites), expected, strict=True):
        torch.testing.assert_close(found, each, rtol=1e-5, atol=1e-5)


def test_the_way_to_a_modules_input_ends_there(tiny_lm):
    lm = tiny_lm()
    (site,) = lm.sites([1])
    ran = []
    handle = site.module.register_forward_hook(lambda *_: ran.append(1))
    inside = torch.randn(2, 48)
    assert input_of(site.module, lambda: site.module(inside)) is inside
    handle.remove()
    assert not ran
    assert not site.module._forward_pre_hooks
    with pytest.raises(RuntimeError, match="was not called"):
        input_of(site.module, lambda: None)


def test_a_hook_is_removed_when_the_block_fails(tiny_lm):
    (site,) = tiny_lm().sites([1])
    with pytest.raises(RuntimeError), capture_input(site.module):
        site.module(torch.zeros(1, 3))
    assert not site.module._forward_pre_hooks


def test_keys_and_outputs_are_found_where_blocks_hand_rows_and_columns_on_as_one(tiny_lm, requests):
    plain, flat = (SubjectStream(lm, requests, CONTEXTS, 1) for lm in (tiny_lm(), flatten_tokens(tiny_lm())))
    sites, others = plain.lm.sites([1, 2]), flat.lm.sites([1, 2])
    for one, other in zip(plain.all_keys(sites), flat.all_keys(others), strict=True):
        torch.testing.assert_close(other, one)
    plain.rewind(), flat.rewind()
    for one, other in zip(plain.outputs(sites[0]), flat.outputs(others[0]), strict=True):
        torch.testing.assert_close(other, one)
