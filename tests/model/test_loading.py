"""What cannot be edited is refused at load, in one line that says what it is and what to do.

The folders are those of bug reports on editing programs (EasyEdit #470, #314, #290; transformers #27923, #12763) and
their kind.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    LlamaForSequenceClassification,
    T5Config,
)

from benchmarks.tiny import tiny_arguments
from sphere_pl.errors import UserError
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.loading import load_language_model, load_weights, open_model
from tests.conftest import make_tokenizer
from tests.gguf_writing import write_gguf
from tests.others import other_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 117192\n"
TARGET = "model.layers.1.mlp.down_proj.weight"


def refusal(name, **options):
    with pytest.raises(UserError) as caught:
        load_language_model(str(name), **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def change_json(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def shards(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    return sorted(folder.glob("model-*.safetensors"))


# ------------------------------------------------------------------ files


def test_a_whole_folder_is_loaded_without_a_word(model_folder, capfd):
    assert load_language_model(str(model_folder)).n_layers == 4
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["shards", "bin"])
def test_shards_and_bin_files_are_loaded(model_folder, kind):
    weights = load_file(model_folder / "model.safetensors")
    if kind == "shards":
        assert len(shards(model_folder)) > 1
    else:
        torch.save(weights, model_folder / "pytorch_model.bin")
        (model_folder / "model.safetensors").unlink()
    assert torch.equal(load_language_model(str(model_folder)).model.get_parameter(TARGET), weights[TARGET])


def test_no_tokenizer(model_folder):
    for file in model_folder.glob("tokenizer*"):
        file.unlink()
    assert "has no tokenizer: none of tokenizer.json" in refusal(model_folder)


def test_a_tokenizer_that_only_python_knows(model_folder):
    (model_folder / "tokenizer.json").unlink()
    (model_folder / "vocab.txt").write_text("[UNK]\n[PAD]\n[CLS]\n[SEP]\n[MASK]\na\n")
    change_json(model_folder / "tokenizer_config.json", tokenizer_class="BertJapaneseTokenizer")
    assert "fast tokenizer" in refusal(model_folder)


def test_a_broken_tokenizer(model_folder):
    (model_folder / "tokenizer.json").write_text("{")
    assert "The tokenizer of the model" in refusal(model_folder)


def test_an_empty_folder_and_folders_without_a_config(model_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is an empty folder" in refusal(tmp_path / "empty")
    assert f"without config.json. Did you mean {model_folder}?" in refusal(tmp_path)
    (model_folder / "config.json").unlink()
    assert "without config.json. Copy it" in refusal(model_folder)
    (model_folder / "params.json").write_text("{}")
    assert "its maker's own format" in refusal(model_folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "\ud800", "{}"])
def test_a_broken_config(model_folder, text):
    (model_folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert str(model_folder / "config.json") in refusal(model_folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_git_lfs_pointer(model_folder, name):
    (model_folder / name).write_text(POINTER)
    message = refusal(model_folder)
    assert f"{model_folder / name} is a Git LFS pointer" in message
    assert "git lfs pull" in message


def test_a_file_of_a_model_or_of_a_run(model_folder, tmp_path):
    assert f"Give --model.name its folder, {model_folder}" in refusal(model_folder / "model.safetensors")
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("")
    for file in (run / "edited.safetensors", run / "checkpoints" / "edits-2.safetensors"):
        file.write_bytes(b"")
        assert f"export --run_dir {run}`" in refusal(file)
    assert "is a run's folder" in refusal(run)
    (tmp_path / "alone.pth").write_bytes(b"")
    assert "is a single file, which is no GGUF file" in refusal(tmp_path / "alone.pth")


def test_an_adapter_names_its_base_model(tmp_path):
    (tmp_path / "adapter").mkdir()
    about = {"peft_type": "LORA", "base_model_name_or_path": "organisation/base"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(about))
    message = refusal(tmp_path / "adapter")
    assert "adapter (PEFT) of the base model organisation/base" in message
    assert "merge_and_unload" in message


# ------------------------------------------------------------------ weights


def test_no_weights(model_folder):
    (model_folder / "model.safetensors").rename(model_folder / "tf_model.h5")
    assert "the only weights there are tf_model.h5" in refusal(model_folder)
    (model_folder / "tf_model.h5").unlink()
    assert "holds no weights at all" in refusal(model_folder)


def test_missing_shards_and_a_missing_index(model_folder):
    files = shards(model_folder)
    files[0].unlink()
    assert f"1 of its {len(files)} weight files are missing ({files[0].name})" in refusal(model_folder)
    (model_folder / "model.safetensors.index.json").unlink()
    assert "Fetch the index too" in refusal(model_folder)


@pytest.mark.parametrize("size", [0, 7, 1000, 50_000])
def test_weights_that_were_cut_off(model_folder, size):
    file = model_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert f"{file} is damaged or was cut off" in refusal(model_folder)


def test_a_damaged_bin_file(model_folder):
    (model_folder / "model.safetensors").unlink()
    (model_folder / "pytorch_model.bin").write_bytes(b"\x80\x02nonsense")
    assert "could not be loaded" in refusal(model_folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_value_that_is_not_finite(model_folder, value, dtype):
    change_tensors(model_folder, lambda tensors: tensors[TARGET][0].fill_(value))
    assert f"values that are not finite: 48 of {TARGET}" in refusal(model_folder, dtype=dtype)


def test_a_length_that_the_configuration_does_not_say(model_folder):
    change_json(model_folder / "config.json", max_position_embeddings=0)
    assert "has no `max_position_embeddings`" in refusal(model_folder)


def test_a_number_that_float16_cannot_hold(model_folder):
    change_tensors(model_folder, lambda tensors: tensors[TARGET][0].fill_(1e6))
    load_language_model(str(model_folder), dtype="bfloat16")
    assert "Choose --model.dtype=bfloat16" in refusal(model_folder, dtype="float16")


def test_weights_that_would_be_made_up(model_folder, capfd):
    change_tensors(model_folder, lambda tensors: tensors.pop(TARGET))
    assert f"has no weights for {TARGET}: they would be random numbers" in refusal(model_folder)
    assert capfd.readouterr() == ("", "")


def test_a_tied_head_is_no_missing_one(tiny_lm, tmp_path):
    lm = tiny_lm("gemma2")
    assert lm.config.tie_word_embeddings
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    load_language_model(str(tmp_path))


def test_weights_of_another_shape(model_folder):
    change_json(model_folder / "config.json", intermediate_size=64)
    assert "could not be loaded" in refusal(model_folder)


# ------------------------------------------------------------------ kinds of model


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "one of tomorrow"])
def test_a_quantised_model(model_folder, method):
    change_json(model_folder / "config.json", quantization_config={"quant_method": method, "bits": 4})
    assert f"is quantised ({method})" in refusal(model_folder)


def test_a_quantised_model_in_memory(tiny_lm):
    lm = tiny_lm()
    down = lm.block(1).mlp.down_proj
    down.weight = torch.nn.Parameter(torch.zeros(768, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UserError, match=f"is quantised \\({TARGET}\\)"):
        LanguageModel(lm.model, lm.tokenizer)


@pytest.mark.parametrize("rows", [40, 1])
def test_a_tokenizer_larger_than_the_embedding(model_folder, rows):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    size = model.config.vocab_size
    model.resize_token_embeddings(size - rows)
    model.save_pretrained(model_folder)
    message = refusal(model_folder)
    assert f"larger than its embedding: {rows} tokens" in message
    assert f"(number {size - rows}) on, have no row among {size - rows}" in message


def test_a_placeholder_outside_the_embedding_is_no_mistake(model_folder, tiny_lm):
    tokenizer = tiny_lm().tokenizer
    size = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(model_folder)
    assert load_language_model(str(model_folder)).tokenizer.convert_tokens_to_ids("<image>") == size
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(model_folder)
    assert "larger than its embedding: 1 tokens, from '<pad>'" in refusal(model_folder)


def test_encoders_and_classifiers(model_folder, tmp_path, tiny_lm):
    lm = tiny_lm()
    classifier = LlamaForSequenceClassification(lm.model.config)
    classifier.save_pretrained(model_folder)
    assert "has no weights for lm_head.weight" in refusal(model_folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=len(lm.tokenizer), **sizes)).save_pretrained(model_folder)
    assert "is a BertForMaskedLM (bert), which is no causal language model" in refusal(model_folder)
    T5Config().save_pretrained(model_folder)
    assert "(t5) is an encoder-decoder" in refusal(model_folder)


def test_code_of_its_own(model_folder):
    change_json(model_folder / "config.json", model_type="ours", auto_map={"AutoModelForCausalLM": "ours.Model"})
    assert "--model.trust_remote_code=true" in refusal(model_folder)


@pytest.mark.parametrize("name", ["opt", "llava"])
def test_a_family_in_no_table_is_loaded_as_it_was_saved(name, tmp_path):
    model = other_model(name)
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    found = load_language_model(str(tmp_path))
    assert type(found.model) is type(model)
    assert not found.described
    ids = torch.tensor([found.tokenizer("The capital of France is")["input_ids"]])
    torch.testing.assert_close(found.model(ids).logits, model(input_ids=ids).logits)


def test_a_family_whose_blocks_add_to_no_stream(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(make_tokenizer()), is_decoder=True, **sizes)
    BertLMHeadModel(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert "(bert) cannot be edited as its parts are found: block 0 changes the residual stream" in refusal(tmp_path)


def test_an_architecture_of_ones_own_takes_the_place_of_the_tables(model_folder):
    own = {"final_norm": "model.layers.3.input_layernorm"}
    assert load_language_model(str(model_folder), architecture={"final_norm": "model.norm"}).n_layers == 4
    weights = load_file(model_folder / "model.safetensors")
    save_file(
        {**weights, "model.norm.weight": 3 * weights["model.norm.weight"]},
        model_folder / "model.safetensors",
        {"format": "pt"},
    )
    assert "model.layers.3.input_layernorm and the head are not the model's own" in refusal(
        model_folder, architecture=own
    )
    assert "'model.last' as its final_norm" in refusal(model_folder, architecture={"final_norm": "model.last"})
    assert "the entry 'norm'" in refusal(model_folder, architecture={"norm": "model.norm"})


# ------------------------------------------------------------------ GGUF


@pytest.mark.parametrize("given", ["file", "folder"])
def test_a_gguf_file_is_the_model_that_it_was_made_from(tiny_lm, tmp_path, given):
    lm = tiny_lm()
    file = write_gguf(lm, tmp_path / "tiny.gguf")
    found = load_language_model(str(file if given == "file" else tmp_path))
    ids = torch.tensor([lm.tokenizer("The capital of France is Paris.")["input_ids"]])
    assert found.tokenizer("The capital of France is Paris.")["input_ids"] == ids[0].tolist()
    assert found.dtype == torch.float32
    assert torch.equal(found.model(ids).logits, lm.model(ids).logits)


def test_a_gguf_model_is_saved_as_a_plain_one(tiny_lm, tmp_path):
    found = load_language_model(str(write_gguf(tiny_lm(), tmp_path / "tiny.gguf")), dtype="bfloat16")
    found.model.save_pretrained(tmp_path / "saved")
    found.tokenizer.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    again = load_language_model(str(tmp_path / "saved"))
    assert again.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), found.model.parameters(), strict=True))


def test_the_tokenizer_beside_a_gguf_file_counts(tiny_lm, tmp_path):
    file = write_gguf(tiny_lm(), tmp_path / "tiny.gguf", tokenizer=False)
    assert "The tokenizer of the model" in refusal(file)
    tiny_lm(bos=True).tokenizer.save_pretrained(tmp_path)
    assert load_language_model(str(file)).tokenizer("Rome")["input_ids"][0] == 0


def test_gguf_files_that_cannot_be_read(tiny_lm, tmp_path):
    file = write_gguf(tiny_lm(), tmp_path / "tiny.gguf")
    whole = file.read_bytes()
    for size in (4, 20, 1000, len(whole) - 100):
        file.write_bytes(whole[:size])
        assert "is damaged or was cut off" in refusal(tmp_path)
    file.write_bytes(b"safetensors")
    assert "is no GGUF file" in refusal(file)
    file.write_text(POINTER)
    assert "is a Git LFS pointer" in refusal(file)
    file.unlink()
    assert "neither a file nor a folder" in refusal(file)


def test_one_gguf_file_must_be_meant(tiny_lm, tmp_path):
    for name in ("a.gguf", "b.gguf"):
        write_gguf(tiny_lm(), tmp_path / name)
    assert "several GGUF files (a.gguf, b.gguf). Name one" in refusal(tmp_path)
    load_language_model(str(tmp_path / "a.gguf"))
    for name in ("a", "b"):
        (tmp_path / f"{name}.gguf").rename(tmp_path / f"x-0000{'ab'.index(name) + 1}-of-00002.gguf")
    assert "--merge" in refusal(tmp_path)
    assert "--merge" in refusal(tmp_path / "x-00001-of-00002.gguf")


def test_a_gguf_file_of_an_unknown_architecture(tiny_lm, tmp_path):
    message = refusal(write_gguf(tiny_lm(), tmp_path / "tiny.gguf", architecture="tomorrow"))
    assert "tomorrow" in message
    assert "transformers version" in message


def test_safetensors_count_before_a_gguf_file_beside_them(model_folder, tiny_lm):
    write_gguf(tiny_lm(seed=1), model_folder / "other.gguf")
    expected = load_file(model_folder / "model.safetensors")[TARGET]
    assert torch.equal(load_language_model(str(model_folder)).model.get_parameter(TARGET), expected)


# ------------------------------------------------------------------ hub, and what a failed start leaves

WITHOUT_HUB = """
import sys, time
from sphere_pl.errors import UserError
from sphere_pl.model.loading import load_language_model
print(load_language_model("organisation/tiny").n_layers)
began = time.monotonic()
try:
    load_language_model("organisation/tinny")
except UserError as error:
    print(error)
print(time.monotonic() - began)
"""


def test_without_a_hub_what_is_cached_is_loaded_and_a_mistyped_name_fails_at_once(model_folder, tmp_path):
    cached = tmp_path / "cache" / "hub" / "models--organisation--tiny"
    (cached / "snapshots").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    model_folder.rename(cached / "snapshots" / ("0" * 40))
    hidden = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": "http://127.0.0.1:9", "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HUB], env=environment, capture_output=True, text=True, check=True
    )
    layers, message, seconds = done.stdout.splitlines()
    assert layers == "4"
    assert "not in the hub's cache, and http://127.0.0.1:9 cannot be reached" in message
    assert "Did you mean organisation/tiny?" in message
    assert float(seconds) < 6
    assert done.stderr == ""


def test_all_but_the_weights_is_read_first(model_folder):
    opened = open_model(str(model_folder))
    assert opened.n_layers == 4
    (model_folder / "config.json").unlink()
    (model_folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="could not be loaded"):
        load_weights(opened)


@pytest.mark.parametrize("mistake", ["name", "layers", "not finite", "corpus"])
def test_a_start_that_fails_leaves_no_run_folder(tmp_path, command_line, monkeypatch, mistake):
    monkeypatch.setenv("WANDB_MODE", "disabled" if mistake in {"name", "layers"} else "offline")
    monkeypatch.chdir(tmp_path)
    arguments = tiny_arguments(tmp_path)
    more = {"name": ["--model.name=./nowhere"], "layers": ["--model.layers=[0,9]"], "not finite": [],
            "corpus": ["--model.statistics.corpus=/nowhere"]}[mistake]  # fmt: skip
    if mistake == "not finite":
        change_tensors(tmp_path / "model", lambda tensors: tensors[TARGET].fill_(float("nan")))
    before = sorted(tmp_path.iterdir())
    status, _, said = command_line("fit", *arguments, *more)
    assert status == 2
    assert "error: " in said
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "cache"] == before
