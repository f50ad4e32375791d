"""How much work a batch is, in operations and not in time: each bound fails if something were done twice."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sphere_pl.editing.representations import SubjectStream
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editing.targets import optimize_targets
from sphere_pl.evaluation.answers import all_prompts, answer_requests
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.tokens import in_context, kl_prompt, tokenize

CONTEXTS = ["", "You and I. ", "Therefore a pianist. "]
LAYER = 1  # of four
SLACK = 1.35  # attention, which the bounds leave out, and padding


@pytest.fixture
def through(monkeypatch):
    """Tokens times blocks that are run."""
    counted, run = [], LanguageModel.run

    def counting(self, hidden, calls, start, stop):
        counted.append(hidden.shape[0] * hidden.shape[1] * (stop - start))
        return run(self, hidden, calls, start, stop)

    monkeypatch.setattr(LanguageModel, "run", counting)
    return counted


def distinct(rows):
    """Tokens of some sequences, every beginning that several share counted once."""
    return len({tuple(row[:stop]) for row in rows for stop in range(1, len(row) + 1)})


class Counter(TorchDispatchMode):
    """Operations of all matrix products, attention's among them; PyTorch's own counter knows no `autograd.grad`."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        self.total += 0 if formula is None else formula(*args, **(kwargs or {}), out_val=found)
        return found


def products(program):
    """Operations of all matrix products in a program, forwards and backwards."""
    with Counter() as counter:
        program()
    return counter.total


def least(lm, requests, evaluations, most):
    """Operations that targets cannot do without: products of real tokens with the weights of blocks and head.

    `evaluations` of each request, forwards and backwards; nothing follows the last one of those that take the most.
    """
    rewrite = tokenize(lm.tokenizer, [in_context(r, c, r.target_new) for r in requests for c in CONTEXTS])
    watched = tokenize(lm.tokenizer, [kl_prompt(request) for request in requests])
    before = sum(distinct([t.ids[: t.subject_last] for t in some]) for some in (rewrite, watched))
    times = [2 * each - (each == most) for each in evaluations]
    each_time = [t for t in times for _ in CONTEXTS]
    columns = [len(t.ids) - 1 - t.subject_last for t in rewrite]
    block = sum(p.numel() for p in lm.block(0).parameters() if p.ndim == 2)
    head = lm.config.hidden_size * lm.config.vocab_size
    above = lm.n_layers - LAYER - 1
    once = before * lm.n_layers * block + (sum(columns) + len(watched)) * (LAYER + 1) * block
    once += len(watched) * (above * block + head)
    asked = sum(n * c for n, c in zip(each_time, columns, strict=True)) + sum(times)
    predicted = sum(n * len(t.target) for n, t in zip(each_time, rewrite, strict=True)) + sum(times)
    return 2 * (once + asked * above * block + predicted * head)


@pytest.mark.parametrize("optimizer", ["adam", "polyak"])
def test_targets_take_each_evaluation_once_forwards_and_once_backwards(tiny_lm, requests, optimizer):
    lm, settings = tiny_lm(), TargetSettings(steps=4, stop_loss=0.0, optimizer=optimizer)
    done = products(lambda: optimize_targets(lm, requests, CONTEXTS, LAYER, settings))
    bound = least(lm, requests, [4] * len(requests), 4)
    assert bound <= done <= SLACK * bound


def test_requests_that_have_converged_cost_nothing_more(tiny_lm, requests):
    settings = TargetSettings(steps=8, learning_rate=0.5, units="absolute", stop_loss=6.2)
    lm, found = tiny_lm(), []
    done = products(lambda: found.append(optimize_targets(lm, requests, CONTEXTS, LAYER, settings)))
    evaluations = [int(steps) + 1 for steps in found[0].steps]
    assert min(evaluations) < 4 < max(evaluations)
    bound = least(lm, requests, evaluations, 8)
    assert bound <= done <= SLACK * bound < least(lm, requests, [8] * len(requests), 8)


def test_keys_run_every_block_once(tiny_lm, requests, through):
    lm = tiny_lm()
    stream = SubjectStream(lm, requests, CONTEXTS, 1)
    first, second = lm.sites([1, 2])
    stream.keys(first)
    stream.keys(second)
    tokens = tokenize(lm.tokenizer, [in_context(r, c) for c in CONTEXTS for r in requests])
    columns = sum(t.subject_last + 1 for t in tokens)
    # Block 0 to enter, 1 up to the first key, 1 to go on, 2 up to the second key.
    assert 4 * columns <= sum(through) <= 4 * SLACK * columns


def test_scoring_runs_every_beginning_once(tiny_lm, requests, through):
    lm = tiny_lm()
    asked = [
        each._replace(
            paraphrases=(f"You and I speak. {each.question}", f"You and I. {each.question}"),
            neighbors=(each.question, f"{each.question} a"),
            neighbor_answers=("Paris", "Rome"),
        )
        for each in requests
    ]
    answer_requests(lm, asked)
    rows = [t.ids[:-1] for t in tokenize(lm.tokenizer, all_prompts(asked))]
    assert sum(map(len, rows)) > 1.2 * SLACK * distinct(rows)
    assert lm.n_layers * distinct(rows) <= sum(through) <= SLACK * lm.n_layers * distinct(rows)


def test_the_counter_sees_a_product(tiny_lm):
    assert products(lambda: torch.ones(2, 3) @ torch.ones(3, 4)) == 2 * 2 * 3 * 4
