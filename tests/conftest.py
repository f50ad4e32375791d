"""Tiny language models of every family, built in memory; nothing is downloaded."""

import gc
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from sphere_callbacks.functional import _checks
from sphere_pl.commands import fit, main
from sphere_pl.commands.configs import resolve_group_files
from sphere_pl.commands.resuming import resolve_resume
from sphere_pl.data.request import EditRequest
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.text.names import literal_names

TEXT = """The capital of France is Paris. The mother tongue of Anna Karlsson is Swedish. The river runs to the sea.
Berlin is a city in Germany. Rome is a city in Italy. You and I speak because of it. Therefore a pianist plays.
Oslo, the capital of Norway, lies by the water. Mount Fuji stands in Japan. An apple is a fruit that is good to eat."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run be strict with the packages it stands on."""
    parser.addoption("--strict-warnings", action="store_true", help="all warnings are errors, but the ignored ones")
    parser.addoption("--families", choices=["all", "some"], default="all", help="those whose parts differ, or all")


def pytest_configure(config: pytest.Config) -> None:
    """One thread for each process: several processes with several threads each wait for one another."""
    if config.getoption("--strict-warnings"):
        ignored = [line for line in config.getini("filterwarnings") if line.startswith("ignore")]
        for line in ["error", *ignored]:  # later lines win
            config.addinivalue_line("filterwarnings", line)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
    os.environ.setdefault("WANDB__SERVICE_WAIT", "300")  # after its own 30 seconds a run has no log, on a busy machine
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the families that were not asked for, where a test takes all of them."""
    if config.getoption("--families") == "some":
        left_out = {item for item in items if _of_another_family(item)}
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def _of_another_family(item: pytest.Item) -> bool:
    """Whether the fixture `family` gives a test one that has its parts in common with another."""
    named = any("family" in str(mark.args[0]) for mark in item.iter_markers("parametrize"))
    family = item.callspec.params.get("family") if hasattr(item, "callspec") else None
    return family is not None and not named and family not in SOME


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Leave the half million objects of the packages out of every search for rubbish: some tests ask for many."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Let no test's random numbers depend on which tests ran before it in its process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


_GROUPED: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
_LATENT: dict[str, Any] = {
    **{"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16},
    **{"qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8},
}
_EXPERTS: dict[str, Any] = {
    **{"moe_intermediate_size": 48, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    **{"n_group": 1, "topk_group": 1},
}
_LINEAR: dict[str, Any] = {
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 2},
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8},
}
_MAMBA: dict[str, Any] = {
    **{"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    **{"mamba_n_groups": 1, "mamba_chunk_size": 8},
}

SIZES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 64},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 64},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 64},
    "gemma3": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 64},
    "phi": {},
    "gpt_neox": {},
    "gpt2": {},
    "gptj": {"rotary_dim": 4},
    "gemma": _GROUPED,
    "olmo": {},
    "phi3": _GROUPED,
    "glm": _GROUPED,
    "smollm3": _GROUPED,
    "qwen3_5_text": {**_GROUPED, **_LINEAR, "layer_types": ["linear_attention", "full_attention"] * 2},
    "ministral3": _GROUPED,
    "seed_oss": _GROUPED,
    "apertus": _GROUPED,
    "hunyuan_v1_dense": _GROUPED,
    "arcee": _GROUPED,
    "nemotron": _GROUPED,
    "stablelm": {"num_key_value_heads": 2},
    "starcoder2": {"num_key_value_heads": 2},
    "lfm2": {
        "num_key_value_heads": 2,
        "layer_types": ["conv", "full_attention"] * 2,
        "block_auto_adjust_ff_dim": False,
    },
    "olmo2": {"num_key_value_heads": 2},
    "olmo3": {"num_key_value_heads": 2, "sliding_window": 64},
    "exaone4": {"num_key_value_heads": 2, "sliding_window": 64},
    "glm4": _GROUPED,
    "granite": {"num_key_value_heads": 2, "residual_multiplier": 0.3, "logits_scaling": 4.0},
    "minicpm3": {**_LATENT, "scale_emb": 2, "dim_model_base": 8},
    "falcon_h1": {**_GROUPED, **_MAMBA, "mlp_multipliers": [0.8, 0.5], "lm_head_multiplier": 0.3},
    "cohere": {"num_key_value_heads": 2, "logit_scale": 0.5},
    "cohere2": {"num_key_value_heads": 2, "logit_scale": 0.5, "sliding_window": 64},
    "falcon": {"ffn_hidden_size": 48, "new_decoder_architecture": False},
    "deepseek_v3": {**_LATENT, **_EXPERTS, "first_k_dense_replace": 2},
    "glm4_moe": {**_GROUPED, **_EXPERTS, "first_k_dense_replace": 2},
    "dots1": {**_GROUPED, **_EXPERTS, "first_k_dense_replace": 2},
}
# One of each kind of block, attention, norm, position and head.
SOME = {
    *("llama", "gpt2", "gptj", "gpt_neox", "qwen2", "qwen3", "gemma2"),
    *("gemma3_text", "mistral", "phi", "cohere2", "falcon_h1", "deepseek_v3", "olmo2"),
}
FAMILIES = sorted(set(SIZES) & set(CONFIG_MAPPING))  # older releases of transformers know fewer


def _config(model_type: str, vocabulary: int) -> Any:
    if model_type in {"gpt2", "gptj"}:
        sizes = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128, "n_inner": 48}
    else:
        sizes = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
        }
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    options = {"vocab_size": vocabulary, **sizes, **special, **SIZES[model_type]}
    if model_type == "gemma3":  # the text model sits behind a vision tower
        tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        vision = {**tower, "image_size": 28, "patch_size": 14}
        return AutoConfig.for_model(model_type, text_config=options, vision_config=vision)
    return AutoConfig.for_model(model_type, **options)


def _byte_level(text: str) -> Tokenizer:
    """As GPT-2's: a letter with an accent may be several tokens, a space belongs to the word after it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.split("\n"), trainer)
    return tokenizer


def _metaspace(kind: str, text: str) -> Tokenizer:
    """As SentencePiece's: `▁` for a space, one before the text, and bytes for what the vocabulary does not have."""
    special = ["<|end|>", "<unk>"]
    own = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=own, show_progress=False)
    tokenizer.train_from_iterator(text.split("\n"), trainer)
    # A byte such as `<0x0A>` is no special token: in a text these are six letters.
    whole = json.loads(tokenizer.to_str())
    whole["added_tokens"] = [token for token in whole["added_tokens"] if token["content"] in special]
    if kind == "unigram":  # of the same pieces: what its own trainer makes of a text differs from run to run
        pieces_in_order = sorted(whole["model"]["vocab"].items(), key=lambda entry: entry[1])
        scores = [[piece, -1 - 0.01 * rank] for piece, rank in pieces_in_order]
        whole["model"] = {"type": "Unigram", "unk_id": 1, "vocab": scores, "byte_fallback": True}
    tokenizer = Tokenizer.from_str(json.dumps(whole))
    pieces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(pieces)
    return tokenizer


# How a text becomes tokens: `byte_level`, or SentencePiece's two models.
TOKENIZERS = ["byte_level", "bpe", "unigram"]


def make_tokenizer(kind: str = "byte_level", bos: bool = False, text: str = TEXT) -> PreTrainedTokenizerFast:
    """A small tokenizer of one of the `TOKENIZERS`, trained on a text."""
    tokenizer = _byte_level(text) if kind == "byte_level" else _metaspace(kind, text)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|end|> $A", special_tokens=[("<|end|>", tokenizer.token_to_id("<|end|>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|end|>"
    )


@pytest.fixture
def signals_heeded() -> Iterator[None]:
    """Signals as a terminal leaves them: what nohup or a script's `&` starts ignores a hangup or Ctrl-C."""
    usual = {signal.SIGINT: signal.default_int_handler}
    if hasattr(signal, "SIGHUP"):
        usual[signal.SIGHUP] = signal.SIG_DFL
    before = {signum: signal.signal(signum, handler) for signum, handler in usual.items()}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture(scope="session")
def tiny_lm() -> Callable[..., LanguageModel]:
    """Build a tiny random model: `tiny_lm("llama", bos=False, seed=0, dtype=torch.float32, tokenizer="bpe")`."""

    def build(
        model_type: str = "llama",
        *,
        bos: bool = False,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        tokenizer: str = "byte_level",
    ) -> LanguageModel:
        built = make_tokenizer(tokenizer, bos)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(_config(model_type, len(built))).to(dtype)
            # The usual initialisation is so small that every block is nearly the identity.
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2:
                    parameter.data.normal_(std=0.3 if "embed" in name or "wte" in name else parameter.shape[1] ** -0.5)
        return LanguageModel(model, built)

    return build


@pytest.fixture
def model_folder(tiny_lm: Callable[..., LanguageModel], tmp_path: Path) -> Path:
    """A tiny model where `from_pretrained` finds it."""
    lm = tiny_lm()
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run the command line; returns the status, stdout and stderr."""

    def run(*args: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["sphere_pl", *args])
        try:
            main()
            status: Any = 0
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


class _Built(Exception):
    """Stops the command line when its parser is there."""


@pytest.fixture(scope="session")
def fit_parser() -> Any:
    """The parser of `fit`, as the command line builds it; once, for all tests that only parse."""
    built: list[Any] = []

    class OnlyParser(fit.EditingCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            built.append(parser)
            raise _Built

    with pytest.raises(_Built):
        fit.run(["fit"], OnlyParser)
    return built[0]._subcommands_action._name_parser_map["fit"]


@pytest.fixture(scope="session")
def parsed(fit_parser: Any) -> Callable[..., dict[str, Any]]:
    """The configuration that a command line of `fit` comes to, as `--print_config` shows it."""

    def parse(*args: str) -> dict[str, Any]:
        words = literal_names(resolve_group_files(resolve_resume(["fit", *args])))
        return yaml.safe_load(fit_parser.dump(fit_parser.parse_args(words[1:]), skip_none=False))

    return parse


HELP = """
import logging, sys
from sphere_pl.commands import main
sys.argv = ["sphere_pl", "fit", "--help_all"]
try:
    main()
except SystemExit as end:
    assert not end.code
for name in ("lightning.pytorch.trainer", "lightning.fabric.utilities.seed"):
    logging.getLogger(name).info("a remark")
    logging.getLogger(name).warning("a warning of %s", name)
print("loaded:", *sys.modules)
"""


@pytest.fixture(scope="session")
def fresh_help() -> tuple[str, str, set[str]]:
    """`fit --help_all` in a process of its own, on a console without signs: stdout, stderr and the modules loaded."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "WANDB_MODE": "disabled", "COLUMNS": "100"}
    command = [sys.executable, "-c", HELP]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    out, _, modules = done.stdout.rpartition("loaded: ")
    return out, done.stderr, set(modules.split())


@pytest.fixture
def requests() -> list[EditRequest]:
    """Four requests whose subjects have different numbers of tokens and different places in the prompt."""
    return [
        EditRequest("0", "The capital of {} is", "France", "Berlin", "Paris", "P36"),
        EditRequest("1", "{} is a city in", "Rome", "Norway", "Italy", "P17"),
        EditRequest("2", "The mother tongue of {} is", "Anna Karlsson", "Italy", "Swedish", "P103"),
        EditRequest("3", "Because {}, the capital, lies by the", "Oslo", "fruit that is good", "water", "P206"),
    ]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Every supported model family."""
    return str(request.param)


@pytest.fixture(params=TOKENIZERS)
def tokenizer_kind(request: pytest.FixtureRequest) -> str:
    """Every way in which a text becomes tokens."""
    return str(request.param)


@pytest.fixture
def single_precision(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that takes float64 from a kind of device, as Apple's GPUs have none."""

    def on(name: str) -> None:
        monkeypatch.setattr(_checks, "_WITHOUT_DOUBLE", {name})

    return on


@pytest.fixture
def bare_trainer() -> Callable[..., L.Trainer]:
    """A trainer on the CPU that writes and shows nothing."""

    def build(**kwargs: Any) -> L.Trainer:
        quiet = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "inference_mode": False,
            "log_every_n_steps": 1,
        }
        return L.Trainer(**{**quiet, **kwargs})

    return build
