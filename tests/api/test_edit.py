"""`sphere_pl.edit` on tiny models: the command line's weights, and everything else as it was."""

import json
import logging
import os
import random
import signal
import sys
from copy import deepcopy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import sphere_pl
from sphere_pl import AlphaEdit, EditDataModule, EditRequest, SequentialEditor, UserError, edit
from sphere_pl.editing.prepared import StatePreparation
from tests.conftest import make_tokenizer
from tests.others import OTHERS, other_model

pytestmark = pytest.mark.filterwarnings("ignore:The corpus")
NULL_SPACE = {"model.method.init_args.null_space_threshold": 10.0}
EDITED = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (1, 2)]


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(one, other):
    return [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.fixture
def held(tiny_lm):
    """A tiny model as a user holds it, and its tokenizer."""
    lm = tiny_lm()
    return lm.model.requires_grad_(True), lm.tokenizer


def test_the_weights_are_those_of_the_command_line(model_folder, facts, settings, tmp_path, command_line, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, facts)))
    options = {**settings, **NULL_SPACE, "data.name": "jsonl", "data.path": str(tmp_path / "facts.jsonl"),
               "data.batch_size": 2, "model.name": str(model_folder), "model.dtype": "float32"}  # fmt: skip
    run = tmp_path / "run"
    status, _, err = command_line("fit", f"--run_dir={run}", *(f"--{name}={value}" for name, value in options.items()))
    assert status == 0, err
    expected, scores = load_file(run / "edited.safetensors"), json.loads((run / "results.json").read_text())

    settings |= NULL_SPACE
    # A copy would not do: its tensors are aligned in memory as those of the file are not, and products round otherwise.
    held, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    model, report = edit(held, tokenizer, facts, batch_size=2, settings=settings)
    named, _ = edit(str(model_folder), facts=facts, batch_size=2, settings={**settings, "model.dtype": "float32"})
    for each in (model, named):
        assert same({name: each.get_parameter(name) for name in expected}, expected)
    assert (report.before, report.after) == (scores["before"], scores["after"])
    assert report.results["method"] == "AlphaEdit + SPHERE"
    assert all(parameter.requires_grad for parameter in named.parameters())


def test_a_model_is_edited_in_place_and_can_be_used_and_saved(held, facts, settings, tmp_path):
    model, tokenizer = held
    before = weights(model)
    edited, report = edit(model, tokenizer, facts, settings=settings)
    assert edited is model
    assert {name for name, value in weights(model).items() if not torch.equal(value, before[name])} == set(EDITED)
    model.generate(**tokenizer("Rome is", return_tensors="pt"), max_new_tokens=2, do_sample=False)
    model.save_pretrained(tmp_path / "saved")
    assert same(weights(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), weights(model))
    assert [fact.subject for fact in report.facts] == ["France", "Rome", "Anna Karlsson"]


def test_a_copy_is_edited_in_the_models_own_dtype_and_the_model_is_left_alone(tiny_lm, facts, settings):
    lm = tiny_lm(dtype=torch.bfloat16)
    before = weights(lm.model)
    edited, _ = edit(lm.model, lm.tokenizer, facts, settings=settings, copy=True)
    assert same(weights(lm.model), before)
    assert not same(weights(edited), before)
    assert edited.dtype == torch.bfloat16


def test_nothing_around_the_call_is_changed(held, facts, settings, monkeypatch):
    model, tokenizer = held
    model.model.embed_tokens.weight.requires_grad_(False)
    model.model.layers[0].train()
    monkeypatch.setattr(sys, "argv", ["notebook", "--of", "the user"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "41")
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)
    flags, modes = ([p.requires_grad for p in model.parameters()], [m.training for m in model.modules()])
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in model.modules()]
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    levels = [logging.getLogger(name).level for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    edit(model, tokenizer, facts, settings=settings, quiet=True)
    assert states[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(states[2], torch.get_rng_state())
    assert flags == [p.requires_grad for p in model.parameters()]
    assert modes == [m.training for m in model.modules()]
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in model.modules()]
    assert handlers == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    assert levels == [logging.getLogger(name).level for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    assert sys.argv == ["notebook", "--of", "the user"]
    assert (os.environ["PL_GLOBAL_SEED"], "PL_SEED_WORKERS" in os.environ) == ("41", False)
    assert os.listdir() == []


def test_a_quiet_call_says_nothing(held, facts, settings, capfd):
    edit(*held, facts, settings=settings, quiet=True)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


class Breaks(AlphaEdit):
    """Ends at the fourth matrix: in the second batch."""

    calls = 0

    def update(self, problem, state):
        Breaks.calls += 1
        if Breaks.calls == 4:
            raise self.error
        return super().update(problem, state)


@pytest.mark.parametrize(
    ("error", "seen"),
    [(KeyError("mine"), KeyError), (KeyboardInterrupt(), (KeyboardInterrupt, SystemExit)), (MemoryError(), UserError)],
)
def test_a_call_that_fails_leaves_the_model_as_it_was(held, facts, settings, error, seen):
    model, tokenizer = held
    before = weights(model)
    method = Breaks(null_space_threshold=10.0)
    Breaks.calls, method.error = 0, error
    with pytest.raises(seen):
        edit(model, tokenizer, facts, method=method, batch_size=1, settings=settings)
    assert Breaks.calls == 4
    assert same(weights(model), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.usefixtures("signals_heeded")
def test_ctrl_c_is_a_keyboard_interrupt(held, facts, settings, monkeypatch):
    monkeypatch.setattr(AlphaEdit, "update", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    before = weights(held[0])
    with pytest.raises(KeyboardInterrupt):
        edit(*held, facts, settings=settings)
    assert same(weights(held[0]), before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_what_the_caller_computes_under_does_not_count(held, facts, settings, around):
    model, tokenizer = held
    expected, _ = edit(model, tokenizer, facts, settings=settings, copy=True)
    with around():
        edit(model, tokenizer, facts, settings=settings)
    assert same(weights(model), weights(expected))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"projection": 0}, "AlphaEdit"),
        ({"projection": False}, "AlphaEdit"),
        ({"method": "memit"}, "MEMIT"),
        ({"method": "MEMIT", "projection": True}, "MEMIT + SPHERE"),
        ({"method": "sphere_pl.methods.EMMET"}, "EMMET + SPHERE"),
        ({"method": AlphaEdit(null_space_threshold=10.0), "config": "callbacks/rect"}, "AlphaEdit + RECT + SPHERE"),
    ],
)
def test_the_first_line_says_which_method_it_was(held, facts, settings, options, name):
    _, report = edit(*held, facts, settings=settings, **options)
    assert str(report).startswith(f"{name} on LlamaForCausalLM, 3 edits\n")


def test_a_run_folder_holds_an_ordinary_run_and_the_facts(held, facts, settings, tmp_path):
    pytest.importorskip("wandb")
    run = tmp_path / "run"
    requests = [EditRequest("7", "The capital of {} is", "France", "Berlin", paraphrases=("So France",)), *facts[1:]]
    options = {**settings, "model.targets.clamp": 40, "model.targets.learning_rate": 20}
    model, report = edit(*held, requests, settings=options, run_dir=run, config="callbacks/prune")
    names = {path.name for path in run.iterdir()}
    expected = {
        "config.yaml",
        "edits.jsonl",
        "edited.safetensors",
        "facts.jsonl",
        "metrics.csv",
        "report.html",
        "results.json",
    }
    assert expected <= names
    assert "wandb" not in names
    assert json.loads((run / "results.json").read_text()) == json.loads(json.dumps(report.results))
    saved = load_file(run / "edited.safetensors")  # PRUNE: the weights that were scored, not those of the editing
    assert same({name: model.get_parameter(name) for name in saved}, saved)
    data = EditDataModule("jsonl", str(run / "facts.jsonl"))
    data.setup("fit")
    assert [request.case_id for request in data.requests] == ["7", "1", "2"]
    assert data.requests[0].paraphrases == ("So France",)
    with pytest.raises(UserError, match="holds a finished run"):
        edit(*held, facts, settings=settings, run_dir=run)


def test_a_model_in_memory_stays_on_its_device(tiny_lm):
    lm = tiny_lm()
    lm.stays = True
    assert nn.Sequential(lm).to("meta")[0].device.type == "cpu"


def test_the_editor_refers_who_gives_it_a_model(held):
    with pytest.raises(UserError, match=r"found LlamaForCausalLM.*sphere_pl\.edit\(model, tokenizer, facts\)"):
        SequentialEditor(AlphaEdit(), [1], name=held[0])


GOOD = {"prompt": "The capital of France is", "subject": "France", "target": "Lyon"}


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ([], "`facts` is empty"),
        (None, "`facts` is NoneType"),
        ("facts.jsonl", "`facts` is str"),
        (GOOD, "`facts` is dict"),
        (7, "`facts` is int"),
        ([GOOD, "Paris"], r"facts\[1\] is str"),
        (
            [{"prompt": "The capital of France is", "target": "Lyon"}],
            r"facts\[0\] has no subject \(1 of 1 edits\): AlphaEdit",
        ),
        ([{**GOOD, "subject": "Italy"}], r"facts\[0\]: the prompt .* does not contain the subject"),
        ([GOOD, {**GOOD, "tragets": "x"}], r"facts\[1\]: the field 'tragets' is unknown"),
        ([GOOD, {**GOOD, "targets": "x"}], r"facts\[1\]: the field 'target' is given twice, once as 'targets'"),
        ([{**GOOD, "target": True}], r"facts\[0\]: the field 'target' is bool"),
    ],
)
def test_facts_that_are_none_are_refused_in_one_line(held, settings, facts, words):
    with pytest.raises(UserError, match=words) as caught:
        edit(*held, facts, settings=settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": [9]}, "layers 0 to 3"),
        ({"method": "memitt"}, "no such group"),
        ({"method": 3}, "is no editing method"),
        ({"method": AlphaEdit(), "run_dir": "run"}, "no object"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"method": "rome", "layers": [2], "batch_size": 2}, "batch_size=1"),
        ({"projection": 1.5}, "strength=1.5"),
        ({"settings": {"model.layer": [1]}}, "model.layers"),
        ({"settings": {"run_dir": "here"}}, "`run_dir=`"),
        ({"settings": {"data.path": "here"}}, "`facts`"),
        ({"settings": {"trainer.devices": 2}}, "one process"),
        ({"settings": {"model.dtype": "float16"}}, "has settled it"),
        ({"settings": {"model.targets": {"steps": 3}}}, "model.targets.steps"),
        ({"settings": {"model.targets.steps": object()}}, "is object"),
        ({"settings": {"data.batch_size": 3}, "batch_size": 2}, "given twice"),
        ({"settings": ["--data.limit=3"]}, "expected a dictionary"),
    ],
)
def test_options_that_fit_nothing_are_refused_before_anything_is_done(held, facts, settings, options, words):
    before = weights(held[0])
    merged = {**{name: value for name, value in settings.items() if name != "model.layers"}}
    given = {"layers": [1, 2], "settings": merged, **options}
    if isinstance(options.get("settings"), dict):
        given["settings"] = merged | options["settings"]
    with pytest.raises(UserError, match=words):
        edit(*held, facts, **given)
    assert same(weights(held[0]), before)
    assert os.listdir() == []


def _quantised(model):
    model.hf_quantizer = object()


def _packed(model):
    model.lm_head.weight = nn.Parameter(torch.zeros(3, 3, dtype=torch.int8), requires_grad=False)


def _training(model):
    model.config.attention_dropout = 0.1
    model.train()


def _adapted(model):
    model._hf_peft_config_loaded = True


def _encoder(model):
    model.config.is_encoder_decoder = True


def _broken(model):
    model.lm_head.weight.data[0, 0] = float("nan")


def _unknown(model):
    model.config.model_type = "mine"
    model.model.layers[1] = model.model.layers[0]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_quantised, "is quantised"),
        (_packed, "is quantised"),
        (_training, r"in training mode and has dropout \(attention_dropout\). Call `model.eval\(\)` first"),
        (_adapted, "carries adapters"),
        (_encoder, "encoder"),
        (_broken, "not finite"),
        (_unknown, "no list of 4 blocks that are called once each"),
    ],
)
def test_models_that_cannot_be_edited_are_refused_in_one_line(held, facts, settings, spoil, words):
    model, tokenizer = held
    spoil(model)
    with pytest.raises(UserError, match=words) as caught:
        edit(model, tokenizer, facts, settings=settings)
    assert "\n" not in str(caught.value)


def test_dropout_that_is_a_module_is_refused_in_training_alone(tiny_lm, facts, settings):
    lm = tiny_lm("gpt2")
    lm.model.train()
    with pytest.raises(UserError, match=r"has dropout \(transformer.drop\)"):
        edit(lm.model, lm.tokenizer, facts, settings=settings)
    edit(lm.model.eval(), lm.tokenizer, facts, settings=settings)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (lambda model, tokenizer, facts: (model, None, facts), "needs its tokenizer"),
        (lambda model, tokenizer, facts: (model, facts), "given as the tokenizer"),
        (lambda model, tokenizer, facts: (model, "tokenizer", facts), "`tokenizer` is str"),
        (lambda model, tokenizer, facts: ("name", facts), r"edit\('name', facts=\[...\]\)"),
        (lambda model, tokenizer, facts: ("name", tokenizer, facts), "its own tokenizer"),
        (lambda model, tokenizer, facts: (nn.Linear(2, 2), tokenizer, facts), "`model` is Linear"),
        (lambda model, tokenizer, facts: (nn.DataParallel(model), tokenizer, facts), "model.module"),
    ],
)
def test_arguments_in_other_places_are_named(held, facts, settings, arguments, words):
    with pytest.raises(UserError, match=words):
        edit(*arguments(*held, facts), settings=settings)


def test_a_model_of_inference_tensors_is_refused(held, facts, settings):
    with torch.inference_mode():
        model = deepcopy(held[0])
    with pytest.raises(UserError, match="inference_mode"):
        edit(model, held[1], facts, settings=settings)


def test_every_public_name_is_there():
    for name in sphere_pl.__all__:
        assert getattr(sphere_pl, name).__name__ == name


@pytest.mark.slow
def test_two_facts_in_the_default_model(capsys):
    import time

    began = time.monotonic(), time.process_time()
    fact = {"prompt": "The Halvorsen X200 drill is made by", "subject": "Halvorsen X200 drill", "target": "Bosch"}
    other = {"prompt": "The mother tongue of Lena Brandt is", "subject": "Lena Brandt", "target": "Finnish"}
    _, report = edit("SmolLM2-135M-Instruct", facts=[fact, other])
    with capsys.disabled():
        wall, used = time.monotonic() - began[0], time.process_time() - began[1]
        sys.stderr.write(f"{report}\nwhole call: {wall:.1f} s, processor: {used:.1f} s\n")
    assert report.after["efficacy"] == 1.0
    assert report.failed == ()


def test_a_model_that_was_named_keeps_its_name_and_so_its_settings_when_it_is_edited_further(
    model_folder, facts, settings
):
    _, report = edit(str(model_folder), facts=facts[:2], settings=settings)
    report.session.model.config._name_or_path = "elsewhere"
    _, further = edit(report, facts[2:])
    assert further.results["model"] == str(model_folder)


def test_a_report_is_continued_with_the_weights_of_one_call(model_folder, facts, settings, tmp_path):
    settings |= NULL_SPACE
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    whole, chained, filed = (AutoModelForCausalLM.from_pretrained(model_folder) for _ in range(3))
    edit(whole, tokenizer, facts, batch_size=2, settings=settings)
    _, report = edit(chained, tokenizer, facts[:2], batch_size=2, settings=settings)
    model, further = edit(report, facts[2:])
    assert model is chained
    assert [fact.subject for fact in further.facts] == ["France", "Rome", "Anna Karlsson"]
    _, report = edit(filed, tokenizer, facts[:2], batch_size=2, settings=settings, run_dir=tmp_path / "a")
    edit(report, facts[2:], run_dir=tmp_path / "b")
    for name in EDITED:
        assert torch.equal(chained.get_parameter(name), whole.get_parameter(name)), name
        assert torch.equal(filed.get_parameter(name), whole.get_parameter(name)), name
    lines = (tmp_path / "b" / "edits.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["requests"]) for line in lines[1:]] == [2, 1]


def test_a_call_that_cannot_be_continued_leaves_the_model_edited(held, facts, settings, tmp_path):
    _, report = edit(*held, facts[:1], settings=settings)
    edited = weights(held[0])
    for arguments, expected in [
        ({"facts": [{"prompt": "no subject"}]}, "target"),
        ({"facts": facts[1:], "run_dir": tmp_path / "b"}, "kept no run folder"),
        ({"facts": facts[1:], "settings": {"model.targets.steps": -1}}, "steps"),
    ]:
        with pytest.raises(UserError, match=expected):
            edit(report, **arguments)
        assert same(weights(held[0]), edited)
    with torch.no_grad():
        held[0].get_parameter(EDITED[0]).mul_(2)
    with pytest.raises(UserError, match="has changed them since"):
        edit(report, facts[1:])


@pytest.mark.parametrize(
    "own",
    [{}, {"model.architecture": OTHERS["opt"]}, {f"model.architecture.{a}": b for a, b in OTHERS["opt"].items()}],
    ids=["found", "described", "described by entries"],
)
def test_a_model_of_a_family_that_is_in_no_table_is_edited_where_its_parts_are(own, facts, settings):
    model = other_model("opt")
    before = weights(model)
    edit(model, make_tokenizer(), facts[:1], settings={**settings, **own})
    changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert changed == {f"model.decoder.layers.{layer}.fc2.weight" for layer in (1, 2)}


@pytest.mark.parametrize("layers", [None, [1, 2]], ids=["searched", "given"])
@pytest.mark.parametrize("field", ["prompt", "target_true", "neighbors"])
def test_what_is_too_long_is_refused_before_minutes_of_preparation(held, facts, settings, layers, field, monkeypatch):
    preparation = (SequentialEditor, "settle"), (StatePreparation, "find")
    for owner, name in preparation[0 if layers is None else 1 :]:
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("prepared"))
    long = "and so on " * 90
    facts[2][field] = {"prompt": f"{long}{facts[2]['prompt']}", "neighbors": [long]}.get(field, long)
    with pytest.raises(UserError, match=r"facts\[2\]: .* tokens.*, but the model reads at most 128"):
        edit(*held, facts, settings={**settings, "model.layers": layers})
