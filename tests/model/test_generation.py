"""Batched generation against one prompt at a time: unpadded, no cache, full logits."""

import pytest
import torch

from sphere_pl.model.generation import (
    continue_texts,
    decode,
    free_texts,
    generate,
    likeliest,
    sample_contexts,
    sample_texts,
    sampler,
    text_until_end,
)

PROMPTS = [
    "The capital of France is",
    "You",
    "Question: Where is Oslo? It is the capital of\nAnswer:",
    "Rome is a city",
]


def next_logits(lm, ids):
    with torch.no_grad():
        return lm.model(input_ids=torch.tensor([ids])).logits[0, -1].float()


def slow_text(lm, prompt, new_tokens, stop=(), longest=10_000):
    ids, said = lm.tokenizer(prompt)["input_ids"], []
    if len(ids) > longest:
        has_bos = ids[0] == lm.tokenizer.bos_token_id
        ids = ([ids[0]] if has_bos else []) + ids[len(ids) - longest + has_bos :]
    for _ in range(new_tokens):
        token = next_logits(lm, ids + said).argmax().item()
        if token == lm.tokenizer.eos_token_id:
            break
        said.append(token)
        text = lm.tokenizer.decode(said)
        if any(end in text for end in stop):
            return text[: min(text.find(end) for end in stop if end in text)]
    return lm.tokenizer.decode(said)


def test_continuing_a_batch_is_continuing_each_text_alone(tiny_lm, family):
    lm = tiny_lm(family)
    texts = ["The capital of France is", "Rome", "You and I speak"]
    together = continue_texts(lm, texts, 5, likeliest)
    for text, tokens in zip(texts, together, strict=True):
        ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
        for token in tokens:
            with torch.no_grad():
                assert lm.model(input_ids=ids).logits[0, -1].argmax() == token
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


def test_sampling_is_seeded_and_leaves_the_global_state_alone(tiny_lm):
    lm = tiny_lm()
    state = torch.random.get_rng_state()
    first = sample_texts(lm, ["The", "Rome is"], 6, seed=1)
    assert first == sample_texts(lm, ["The", "Rome is"], 6, seed=1)
    assert first != sample_texts(lm, ["The", "Rome is"], 6, seed=2)
    assert torch.equal(state, torch.random.get_rng_state())


def test_top_k_keeps_to_the_likeliest_tokens():
    pick = sampler(torch.Generator().manual_seed(0), top_k=2)
    logits = torch.tensor([[0.0, 3.0, 2.9, -1.0]]).repeat(200, 1)
    assert set(pick(logits).tolist()) == {1, 2}


def test_contexts_begin_with_the_empty_one_and_end_as_sentences(tiny_lm):
    contexts = sample_contexts(tiny_lm(), count=5, length=6, seed=0)
    assert contexts[0] == ""
    assert len(contexts) == 6
    assert all(context.endswith(". ") and "\n" not in context for context in contexts[1:])
    assert sample_contexts(tiny_lm(), count=0, length=6, seed=0) == [""]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("max_tokens", [60, 10_000])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt2"])
def test_texts_are_those_of_one_prompt_at_a_time(tiny_lm, model_type, bos, max_tokens):
    lm = tiny_lm(model_type, bos=bos)
    expected = [slow_text(lm, prompt, 9) for prompt in PROMPTS]
    assert generate(lm, PROMPTS, 9, max_tokens=max_tokens) == expected
    stop = tuple(text[2:4] for text in expected[:2])
    stopped = [slow_text(lm, prompt, 9, stop) for prompt in PROMPTS]
    assert stopped != expected
    assert generate(lm, PROMPTS, 9, stop, max_tokens) == stopped


@pytest.mark.parametrize("family", ["llama", "qwen3_5_text", "lfm2"])
def test_an_end_token_ends_a_text_and_its_row_leaves_the_batch(tiny_lm, family):
    lm = tiny_lm(family)
    plain = generate(lm, PROMPTS, 6)
    ends = lm.tokenizer(plain[0])["input_ids"][2]
    lm.model.generation_config.eos_token_id = [ends, 1]
    found = generate(lm, PROMPTS, 6)
    assert len(found[0]) < len(plain[0])
    assert plain[0].startswith(found[0])
    assert any(len(text) == len(full) for text, full in zip(found, plain, strict=True))


@pytest.mark.parametrize("ends", [1, [7, 1]], ids=str)
def test_a_text_goes_up_to_the_first_end_whoever_names_it(tiny_lm, ends):
    lm = tiny_lm()
    lm.model.generation_config.eos_token_id = ends
    first, second = (lm.tokenizer(word)["input_ids"][-1] for word in ("Rome", "You"))
    assert text_until_end(lm, [first, 1, second]) == lm.tokenizer.decode([first])
    assert text_until_end(lm, [first, lm.tokenizer.eos_token_id, second]) == lm.tokenizer.decode([first])
    assert text_until_end(lm, [first, second]) == lm.tokenizer.decode([first, second])


@pytest.mark.parametrize("bos", [False, True])
def test_a_prompt_longer_than_the_context_loses_its_beginning(tiny_lm, bos):
    lm = tiny_lm(bos=bos)
    long = "The river runs to the sea by the water. " * 20
    assert len(lm.tokenizer(long)["input_ids"]) > 128
    assert generate(lm, [long, "You"], 5) == [slow_text(lm, long, 5, longest=123), slow_text(lm, "You", 5)]


@pytest.mark.parametrize("new_tokens", [127, 128, 1000])
def test_an_answer_of_the_whole_context_or_more_leaves_the_prompt_half_of_it(tiny_lm, new_tokens):
    lm = tiny_lm("gpt2", bos=True)
    long = "The river runs to the sea by the water. " * 20
    assert generate(lm, [long, "You"], new_tokens) == [
        slow_text(lm, long, 64, longest=64),
        slow_text(lm, "You", min(new_tokens, 128 - len(lm.tokenizer("You")["input_ids"]))),
    ]


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_beginning_as_long_as_a_free_text_or_the_context_is_not_continued(tiny_lm, model_type):
    lm = tiny_lm(model_type)
    long = "The river runs to the sea by the water. " * 20
    assert len(lm.tokenizer(long)["input_ids"]) > lm.context
    for length in (20, 10_000):
        texts = free_texts(lm, [long, "Rome is"], seed=0, length=length)
        assert texts[0] == long
        assert texts[1] != "Rome is"
    assert free_texts(lm, [long], seed=0) == [long]


def test_no_prompts_have_no_texts(tiny_lm):
    assert generate(tiny_lm(), [], 5) == []


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "lfm2"])
def test_no_row_grows_longer_than_the_context_nor_ends_one_beside_it(tiny_lm, model_type):
    lm = tiny_lm(model_type)
    rows = [[5, 6, 7], list(range(10, 10 + lm.context - 4))]
    short, long = decode(lm, rows, 8, likeliest)
    assert (len(short), len(long)) == (8, 4)
    assert (short, long) == (decode(lm, rows[:1], 8, likeliest)[0], decode(lm, rows[1:], 4, likeliest)[0])
