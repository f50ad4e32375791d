"""A tiny GPT-2 behind tokenizers of each kind, and behind the real one's where its file lies beside the checkout."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from sphere_pl.data.request import EditRequest
from sphere_pl.editing.representations import SubjectStream, capture_input
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editing.targets import optimize_targets
from sphere_pl.evaluation.scoring import answer
from sphere_pl.methods import MEMIT, KnownProblem
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.tokens import Prompt, in_context, tokenize
from tests.conftest import TEXT, TOKENIZERS, make_tokenizer

FILE = Path(__file__).parents[3] / "shared" / "data" / "tokenizers" / "gpt2" / "tokenizer.json"
REQUESTS = [
    EditRequest("0", "{} is located in the continent of", "Vinson Massif", "Europe"),
    EditRequest("1", "The mother tongue of {} is", "Danielle Darrieux", "English"),
    EditRequest("2", "“{}” was written in", "Der Fänger im Roggen", "Swedish"),  # characters of several tokens
    EditRequest("3", "In 1990, {}'s capital was", "Côte d'Ivoire", "Yamoussoukro"),
]


def tokenizer_of(kind):
    if kind != "GPT-2":
        return make_tokenizer(kind, text=TEXT + " Europe English Swedish Yamoussoukro" * 50)  # each is one token
    if not FILE.is_file():
        pytest.skip(f"the real GPT-2 tokenizer is not in {FILE}")
    return PreTrainedTokenizerFast(tokenizer_file=str(FILE), eos_token="<|endoftext|>")


@pytest.fixture(scope="module", params=[*TOKENIZERS, "GPT-2"])
def lm(request):
    tokenizer = tokenizer_of(request.param)
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "n_inner": 48}
    end = tokenizer.eos_token_id
    config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data.normal_(std=0.2)
    return LanguageModel(model, tokenizer)


@pytest.mark.parametrize("context", ["", "You and I. "])
@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.subject)
def test_subject_and_target_are_found_whole(lm, request_, context):
    (tokens,) = tokenize(lm.tokenizer, [in_context(request_, context, request_.target_new)])
    subject = lm.tokenizer.decode(tokens.ids[tokens.subject_first : tokens.subject_last + 1])
    assert subject.strip(" “") == request_.subject
    assert lm.tokenizer.decode(tokens.target).removeprefix(" ") == request_.target_new
    assert lm.tokenizer.decode(tokens.ids) == f"{context}{request_.question} {request_.target_new}"


def test_keys_of_a_batch_are_those_of_plain_forwards(lm):
    (site,) = lm.sites([1])
    found = SubjectStream(lm, REQUESTS, [""], 1).keys(site)
    for request, key in zip(REQUESTS, found, strict=True):
        # The last token of the subject is the last one of the text that ends there.
        ids = lm.tokenizer(request.question[: request.subject_end], return_tensors="pt")["input_ids"]
        with capture_input(site.module) as inputs, torch.no_grad():
            lm.model(input_ids=ids)
        torch.testing.assert_close(key, inputs[0][0, -1], rtol=1e-4, atol=1e-4)


def test_an_edit_raises_the_targets_probability(lm):
    (site,) = lm.sites([1])
    before = site.read()
    # The subject stands last: a random model's attention carries hardly anything from there to later tokens.
    requests = [request._replace(prompt="I have read of {}") for request in REQUESTS]
    prompts = [Prompt(request.question, request.target_new) for request in requests]
    unedited = [each.log_probability for each in answer(lm, prompts)]
    settings = TargetSettings(steps=40, learning_rate=0.5, clamp=10.0, weight_decay=0.0, kl_weight=0.0)
    targets = optimize_targets(lm, requests, [""], 1, settings)
    stream = SubjectStream(lm, requests, [""], 1)
    method = MEMIT(1e-3)
    keys, missing = stream.keys(site), targets.values - stream.values(1)
    site.write(before + method.update(KnownProblem(keys, missing), method.initial_state(before, torch.eye(48))))
    edited = [each.log_probability for each in answer(lm, prompts)]
    site.write(before)
    assert all(new > old + 1 for new, old in zip(edited, unedited, strict=True))
