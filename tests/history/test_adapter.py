"""The edits as a PEFT adapter: what peft makes of it, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sphere_callbacks import RelativeMask
from sphere_pl.commands import export, predict, verify
from sphere_pl.errors import UserError
from sphere_pl.history.adapter import adapted, best_part
from sphere_pl.history.saved import SavedRun

# peft 0.21 asks transformers 5.24 for what it has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
PROMPTS = ["The capital of France is", "Rome is a city in Italy"]


def export_adapter(run, *args, name="adapter"):
    export.main(["--run_dir", str(run.folder), "--adapter", "--out", str(run.folder / name), *args])
    return run.folder / name


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma3", "gpt2", "gpt_neox"])
def test_peft_makes_the_edited_model_of_it(fit, model_folder, model_type, tiny_lm, tmp_path):
    peft = pytest.importorskip("peft")
    if model_type == "qwen2":  # its tokenizer class adds a token of its own
        lm = tiny_lm(model_type)
        lm.model.resize_token_embeddings(len(lm.tokenizer) + 1)
        lm.model.save_pretrained(tmp_path / model_type)
        lm.tokenizer.save_pretrained(tmp_path / model_type)
    run = fit(model_type=model_type, sphere={"strength": 0.5})
    folder = export_adapter(run)
    base = AutoModelForCausalLM.from_pretrained(model_folder(model_type))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = peft.PeftModel.from_pretrained(base, str(folder))
    edited = run.editor.language_model.model
    for prompt in PROMPTS:
        tokens = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            torch.testing.assert_close(model(**tokens).logits, edited(**tokens).logits, rtol=1e-5, atol=1e-5)
    merged = dict(model.merge_and_unload().named_parameters())
    for name, weight in edited.named_parameters():
        if name in run.live:  # each of the two batches has rounded the float32 entries, which no product gives back
            ulp = torch.finfo(torch.float32).eps * weight.abs().max()
            assert float((merged[name] - weight).abs().max()) <= 16 * ulp, name
        else:
            assert torch.equal(merged[name], weight), name


def test_an_adapter_of_a_bfloat16_model_merges_to_its_bits(fit, model_folder):
    peft = pytest.importorskip("peft")
    run = fit(dtype="bfloat16")
    base = AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.bfloat16)
    merged = peft.PeftModel.from_pretrained(base, str(export_adapter(run))).merge_and_unload()
    edited = dict(run.editor.language_model.model.named_parameters())
    differing = sum(int((merged.get_parameter(name) != edited[name]).sum()) for name in run.live)
    assert differing <= sum(edited[name].numel() for name in run.live) // 1000  # entries that lie between two bfloat16


def test_an_adapter_is_what_serving_expects(fit, capsys):
    run = fit()
    folder = export_adapter(run)
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    assert config["r"] == config["lora_alpha"] == 4
    assert config["target_modules"] == ["model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"]
    assert {tuple(t.shape) for n, t in tensors.items() if "lora_A" in n} == {(4, 48)}
    card = (folder / "README.md").read_text()
    assert "library_name: peft" in card
    assert "LoRA adapter of rank 4" in card
    said = capsys.readouterr().out
    assert "--max-lora-rank 8" in said
    assert "kB per edit" in said
    assert str(run.folder.parent) not in json.dumps(config)


def test_full_rank_changes_are_refused_with_what_a_smaller_rank_would_leave_out(fit, capsys):
    run = fit(callbacks=[RelativeMask(keep=0.4)])
    with pytest.raises(UserError, match=r"full rank .* --adapter_rank K: rank 8 leaves out \d"):
        export_adapter(run)
    assert not list(run.folder.glob("*adapter*"))
    folder = export_adapter(run, "--adapter_rank", "8")
    said = capsys.readouterr().out
    assert "leaves out" in said
    assert "efficacy is" in said
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 8


def test_the_best_part_is_the_singular_value_decompositions():
    change = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    u, s, vh = torch.linalg.svd(change.double())
    for matrix, reference in ((change, (u[:, :3] * s[:3]) @ vh[:3]), (change.T, ((u[:, :3] * s[:3]) @ vh[:3]).T)):
        factors = best_part(matrix, 3)
        torch.testing.assert_close(factors.left @ factors.right, reference.float(), rtol=1e-4, atol=1e-4)


def test_an_adapter_is_asked_and_verified_and_belongs_to_its_base_alone(fit, model_folder, tiny_lm, capsys):
    run = fit(model_type="gpt2")
    folder, model = export_adapter(run), model_folder("gpt2")
    capsys.readouterr()
    predict.main(["--folder", str(folder), "--model", str(model), "--prompt", PROMPTS[0], "--max_tokens", "3"])
    both = capsys.readouterr().out
    predict.main(["--run_dir", str(run.folder), "--prompt", PROMPTS[0], "--max_tokens", "3"])
    assert both.splitlines() == capsys.readouterr().out.splitlines()[:-1]
    export.main(["--run_dir", str(run.folder), "--out", str(run.folder / "whole")])
    verify.main([str(run.folder), "--served", str(folder), str(run.folder / "whole")])
    said = capsys.readouterr().out
    assert said.count("ok  ") == 6
    other = tiny_lm("gpt2", seed=1).model
    with pytest.raises(UserError, match="was made for another model"):
        adapted(folder, dict(other.named_parameters()))


def test_what_does_not_fit_is_found_by_verify(fit, capsys):
    run = fit()
    export.main(["--run_dir", str(run.folder), "--at", "2", "--out", str(run.folder / "old")])
    with pytest.raises(UserError, match=r"old is not as expected"):
        verify.main(["--run_dir", str(run.folder), "--served", str(run.folder / "old")])
    assert "2 matrices are not those that the log makes" in capsys.readouterr().out
    path = run.folder / "edits" / "batch-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="batches, weights are not"):
        verify.main([str(run.folder)])
    assert SavedRun.open(run.folder).history.edits == 4
