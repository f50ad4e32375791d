"""A model whose layers lie on several devices gives the numbers of the same model on one."""

import sys

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from benchmarks.tiny import tiny_model
from sphere_callbacks import EnergyCorrelation, HypersphericalEnergy, RelativeMask, SparseProjection, SpectrumRestraint
from sphere_pl.abilities.answering import choice_log_likelihoods
from sphere_pl.abilities.task import Item
from sphere_pl.commands.fit import run
from sphere_pl.data.datamodule import EditLoader
from sphere_pl.data.request import EditRequest
from sphere_pl.editing.likelihood import TargetLikelihood
from sphere_pl.editing.moments import StatisticsSettings, compute_second_moments
from sphere_pl.editing.representations import SubjectStream
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editing.targets import optimize_targets
from sphere_pl.editor import SequentialEditor
from sphere_pl.errors import UserError
from sphere_pl.evaluation.scoring import answer, held_out, perplexity, predicting_states
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.methods import AlphaEdit, UltraEdit
from sphere_pl.model.fingerprint import fingerprint
from sphere_pl.model.generation import continue_texts, generate
from sphere_pl.model.loading import load_language_model
from sphere_pl.model.tokens import Prompt, in_context
from sphere_pl.progress import untracked
from sphere_pl.run.checkpoints import RunCheckpoints, newest_checkpoint
from sphere_pl.run.drift import Drift, compare
from sphere_pl.run.edit_log import EditLog
from sphere_pl.run.loggers import MetricsFile
from sphere_pl.run.results import RunResults
from sphere_pl.run.target_table import TargetTable
from sphere_pl.tracing.trace import TraceSettings, trace_fact
from tests.conftest import TEXT
from tests.pretend import pretending, spread

pytestmark = pytest.mark.filterwarnings("ignore:The corpus", "ignore:.*logging interval")
FEW = ["llama", "gpt2", "gptj"]  # plain, transposed and tied, tuples
CONTEXTS = ["", "It is late. "]
PLACES = ["meta:1", "meta:1", "meta:2", "meta:1"]


@pytest.fixture(params=FEW)
def both(request, tiny_lm):
    """A model on one device, and its twin on three."""
    return tiny_lm(request.param), scattered(tiny_lm(request.param))


def scattered(lm, head="meta:1", hooked=False):
    """Put the blocks on two devices, between embeddings on the CPU and a head elsewhere.

    The final norm is hooked as accelerate would do it: the model itself calls it when it is asked for its block calls.
    With `hooked` the blocks are as well; without, only this package moves what they are given.
    """
    blocks = {lm.architecture.block.format(layer): place for layer, place in enumerate(PLACES)}
    homes = {**blocks, lm.architecture.final_norm: "meta:2"}
    tied = lm.model.get_output_embeddings().weight is lm.model.get_input_embeddings().weight
    if not tied and head != "cpu":
        homes["lm_head"] = head
    return spread(lm, homes, homes if hooked else {lm.architecture.final_norm})


def same(found, expected):
    """Equal up to rounding: attention takes other ways on other devices."""
    torch.testing.assert_close(found.cpu(), expected, rtol=2e-4, atol=2e-5)


def test_the_pretended_devices_refuse_to_mix(tiny_lm):
    lm = scattered(tiny_lm())
    assert lm.spread
    with pretending(), pytest.raises(RuntimeError, match="given tensors on cpu, meta:1"):
        lm.sites([1])[0].stored @ torch.ones(48)


def test_blocks_keep_the_hooks_that_accelerate_gave_them(tiny_lm):
    plain, lm = tiny_lm(), scattered(tiny_lm(), hooked=True)
    with pretending():
        ids = torch.tensor([[5, 6, 7]])
        expected = plain.model(ids).logits
        for _ in range(2):  # asking for block calls takes the place of the blocks' own calls for a moment
            calls = lm.block_calls(ids, torch.ones_like(ids), torch.arange(3)[None])
            same(lm.logits(lm.run(calls.hidden, calls, 0, lm.n_layers)), expected)
            same(lm.model(ids).logits, expected)


def test_keys_and_values_lie_where_their_block_does(both, requests):
    plain, lm = both
    with pretending():
        streams = [SubjectStream(each, requests, CONTEXTS, 1) for each in both]
        for one, other in zip(plain.sites([1, 2]), lm.sites([1, 2]), strict=True):
            keys = streams[1].keys(other)
            assert keys.device == other.stored.device
            same(keys, streams[0].keys(one))
        values = streams[1].values(2)
        assert values.device == lm.sites([2])[0].stored.device
        same(values, streams[0].values(2))
        found, expected = streams[1].all_keys(lm.sites([1, 2])), streams[0].all_keys(plain.sites([1, 2]))
        for each, right in zip(found, expected, strict=True):
            same(each, right)


def test_targets_are_found_through_all_devices(both, requests):
    settings = TargetSettings(steps=4, learning_rate=0.3, clamp=4.0, stop_loss=2.0, max_tokens=64)
    with pretending():
        expected, found = (optimize_targets(lm, requests, CONTEXTS, 2, settings) for lm in both)
    for one, other in zip(expected, found, strict=True):
        same(other.float(), one.float())


def test_likelihood_and_its_gradients_pass_through_all_devices(both, requests):
    results = []
    with pretending():
        for lm in both:
            sites = lm.sites([1, 2])
            likelihood = TargetLikelihood(lm, requests, sites, max_tokens=64)
            losses = []
            for index, site in enumerate(sites):
                likelihood.advance(index)
                loss, gradient = likelihood.loss_and_gradient(site.read(), torch.arange(len(requests)))
                assert gradient.device == site.stored.device
                losses += [loss, gradient, *likelihood.features()]
            results.append(losses)
    for expected, found in zip(*results, strict=True):
        same(found, expected)


def test_second_moments_lie_beside_their_matrix(both, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(TEXT)
    settings = StatisticsSettings(corpus=str(corpus), tokens=100, length=20, batch_size=2)
    with pretending():
        expected, found = (compute_second_moments(lm, lm.sites([1, 2]), settings, untracked) for lm in both)
        for name, moment in expected.items():
            same(found[name].matrix, moment.matrix)
            same(found[name].half_spectrum, moment.half_spectrum)
        assert fingerprint(both[0]) == fingerprint(both[1])


def test_answers_texts_and_drift_are_those_of_one_device(both):
    prompts = [Prompt("The capital of France is", "Paris"), Prompt("The capital of France", "is Rome"), Prompt("So")]
    items = [Item("Rome is a city in", 0, (" Italy", " the sea")), Item("You and", 1, (" I", " a pianist plays"))]
    results = []
    with pretending():
        for lm in both:
            text = held_out(lm, TEXT, 64, 20)
            states = predicting_states(lm, text)
            results.append(
                {
                    "predicted": [each.predicted for each in answer(lm, prompts)],
                    "likelihood": [each.log_probability for each in answer(lm, prompts[:2])],
                    "perplexity": perplexity(lm, TEXT, 64, 20),
                    "drift": list(compare(lm, states, states, text.labels)),
                    "choices": [each for item in choice_log_likelihoods(lm, items) for each in item],
                    "generated": generate(lm, ["The capital of", "Rome"], 6, stop=("a",)),
                    "continued": continue_texts(lm, ["Oslo", "You and I"], 5, lambda logits: logits.argmax(-1)),
                }
            )
    for name in ("likelihood", "perplexity", "drift", "choices"):
        assert results[1].pop(name) == pytest.approx(results[0].pop(name), rel=1e-3, abs=1e-5)
    assert results[1] == results[0]


def test_causal_tracing_puts_states_back_on_their_device(both):
    prompt = in_context(EditRequest("0", "The capital of {} is", "France", "Paris"), "", "Paris")
    settings = TraceSettings(samples=2, window=2)
    with pretending():
        expected, found = (trace_fact(lm, prompt, settings, 1.0, torch.Generator().manual_seed(0)) for lm in both)
    assert found.clean == pytest.approx(expected.clean, rel=1e-3)
    same(found.effects, expected.effects)


METHODS = {  # with targets and second moments; with gradients of a likelihood
    "AlphaEdit": lambda: AlphaEdit(ridge=1.0, null_space_threshold=10.0),
    "UltraEdit": UltraEdit,
}


@pytest.fixture
def fit(tmp_path, requests, bare_trainer):
    """Edit with everything that looks at an edited model; returns the editor."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(TEXT)

    def fit(lm, method, name, *more, resume=False, statistics_device=None):
        L.seed_everything(0, verbose=False)
        editor = SequentialEditor(
            METHODS[method](),
            [1, 2],
            targets=TargetSettings(steps=3, learning_rate=0.5, clamp=4.0, anchor=method == "AlphaEdit"),
            statistics=StatisticsSettings(corpus=str(corpus), tokens=100, cache_dir=str(tmp_path / "cache")),
            evaluation=EvaluationSettings(perplexity_tokens=64, sample=2, texts=1, cases=1),
            contexts=2,
            statistics_device=statistics_device,
        )
        editor.lm = lm
        folder = tmp_path / name
        trainer = bare_trainer(
            max_epochs=1,
            default_root_dir=folder,
            callbacks=[
                RelativeMask(0.8),
                SparseProjection(),
                HypersphericalEnergy(),
                EnergyCorrelation(min_points=3),
                SpectrumRestraint(),
                Drift(),
                RunCheckpoints(max_overhead=1.0),
                EditLog(str(folder)),
                TargetTable(str(folder)),
                RunResults(str(folder)),
                *more,
            ],
            logger=MetricsFile(str(folder)),
            val_check_interval=1,
        )
        path = newest_checkpoint(folder / "checkpoints") if resume else None
        rich = [each._replace(neighbors=("Berlin is a city in",), neighbor_answers=("Germany",)) for each in requests]
        trainer.fit(editor, EditLoader(rich, 2), ckpt_path=path)
        return editor

    return fit


class Cut(Exception):
    """The run ends here."""


class CutAtSecond(L.Callback):
    """Cut a run off in its second batch."""

    def on_before_optimizer_step(self, trainer, *_):
        if trainer.global_step == 1:
            raise Cut


@pytest.mark.parametrize("method", METHODS)
def test_a_whole_run_edits_a_spread_model_as_it_does_one_on_one_device(fit, tiny_lm, method):
    expected = fit(tiny_lm(), method, "one")
    lm = scattered(tiny_lm(), head="cpu")
    with pretending():
        found = fit(lm, method, "spread")
        for site, weight, right in zip(found.sites, found.weights, expected.weights, strict=True):
            assert weight.device == site.stored.device != torch.device("cpu")  # nobody moved them
            same(weight.data, right.data)
            assert not torch.equal(weight.cpu(), tiny_lm().sites([site.layer])[0].read())
    for name, score in expected.scores.after.items():
        assert found.scores.after[name].value == pytest.approx(score.value, rel=1e-2, abs=1e-4), name


def test_states_held_in_main_memory_meet_each_matrix_on_its_own_device(fit, tiny_lm):
    expected = fit(tiny_lm(), "AlphaEdit", "one")
    with pretending():
        found = fit(scattered(tiny_lm(), head="cpu"), "AlphaEdit", "spread", statistics_device="cpu")
        for weight, right, state in zip(found.weights, expected.weights, found.states, strict=True):
            assert weight.device.type != "cpu"
            assert {tensor.device.type for tensor in state.values()} == {"cpu"}
            same(weight.data, right.data)


def test_a_run_on_a_spread_model_goes_on_from_its_checkpoint(fit, tiny_lm):
    with pretending():
        whole = fit(scattered(tiny_lm(), head="cpu"), "AlphaEdit", "whole")
        with pytest.raises(Cut):
            fit(scattered(tiny_lm(), head="cpu"), "AlphaEdit", "cut", CutAtSecond())
        resumed = fit(scattered(tiny_lm(), head="cpu"), "AlphaEdit", "cut", resume=True)
        for weight, right in zip(resumed.weights, whole.weights, strict=True):
            assert torch.equal(weight.cpu(), right.cpu())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_model(tmp_path_factory.mktemp("model")))


def whole(**others):
    parts = ["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head", "model.layers.0", "model.layers.1"]
    return {**dict.fromkeys(parts, "cpu"), **others}


@pytest.mark.parametrize("given", ["auto", whole(**{"model.layers.2": "cpu"})], ids=["auto", "mapping"])
def test_a_map_that_names_one_device_loads_the_model_there(folder, given):
    lm = load_language_model(folder, dtype="float32", device_map=given)
    assert not lm.spread
    assert lm.to(torch.float64).dtype == torch.float64  # it can still be moved and converted


def test_weights_that_would_come_and_go_are_refused(folder):
    with pytest.raises(UserError, match="no room for 9 of the model's tensors"):
        load_language_model(folder, device_map=whole(**{"model.layers.2": "disk"}))


@pytest.mark.parametrize("given", ["automatic", {"0": "1GiB"}, {}])
def test_a_map_that_cannot_be_followed_is_named_with_the_reason(folder, given):
    if torch.accelerator.is_available() and given:
        pytest.skip("there is such a device here")
    with pytest.raises(UserError, match=r"could not be loaded under --model.device_map="):
        load_language_model(folder, device_map=given)


def test_a_block_in_pieces_is_refused(folder):
    block = {"input_layernorm": "cpu", "post_attention_layernorm": "cpu", "self_attn": "cpu", "mlp": "disk"}
    pieces = {f"model.layers.2.{name}": place for name, place in block.items()}
    with pytest.raises(UserError, match=r"puts block 2 on several devices \(cpu, meta\)"):
        load_language_model(folder, device_map=whole(**pieces))


def test_a_spread_model_is_not_moved(tiny_lm):
    lm = scattered(tiny_lm())
    with pretending():
        lm.to("cpu")
        assert {str(lm.block(layer).mlp.down_proj.weight.device) for layer in range(4)} == {"meta:1", "meta:2"}


def test_several_processes_with_one_spread_model_are_refused_before_they_start(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sphere_pl"])
    monkeypatch.setenv("WANDB_MODE", "disabled")
    more = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu", "--model.device_map=auto"]
    with pytest.raises(MisconfigurationException, match="DDPStrategy in 2 processes"):
        run(["fit", f"--run_dir={tmp_path / 'run'}", f"--model.name={folder}", "--model.layers=[1]", *more])


@pytest.mark.parametrize("given", ['{"0": "1GiB"}', "{0: 1GiB}"])
def test_the_command_line_hands_on_how_much_each_device_may_take(folder, tmp_path, monkeypatch, given):
    if torch.accelerator.is_available():
        pytest.skip("there is such a device here")
    monkeypatch.setattr(sys, "argv", ["sphere_pl"])
    monkeypatch.setenv("WANDB_MODE", "disabled")
    # the second without, the first with a PyTorch that is built for GPUs
    missing = r"under --model.device_map=\{'?0'?: '1GiB'\}: (Found no NVIDIA driver|Cannot access accelerator)"
    model = [f"--model.name={folder}", "--model.layers=[0,1]", f"--model.device_map={given}"]
    with pytest.raises(UserError, match=missing):
        run(["fit", f"--run_dir={tmp_path / 'run'}", *model])
