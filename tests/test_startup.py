"""The command line answers without loading what it does not need yet."""

import subprocess
import sys

# torchmetrics brings transformers and accelerate with it, and lightning torchmetrics.
HEAVY = {"datasets", "wandb", "plotly", "gguf", "transformers.models.llama.modeling_llama"}
LIBRARIES = {"torch", "lightning", "torchmetrics", "accelerate", "sklearn", "matplotlib", "sphere_pl.editor"}


def test_help_loads_no_library_that_only_a_run_needs(fresh_help):
    loaded = fresh_help[2]
    assert "sphere_pl.commands.fit" in loaded
    assert not loaded & HEAVY


def test_help_on_one_screen_loads_no_library_at_all():
    code = "import sys; from sphere_pl.commands import main; sys.argv = ['sphere_pl', 'fit', '--help']; main()"
    code += "; print('loaded:', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    out, _, modules = done.stdout.rpartition("loaded: ")
    assert "--data.path" in out, done.stderr
    assert not set(modules.split()) & (HEAVY | LIBRARIES)


def test_check_reads_a_file_and_a_tokenizer_without_what_a_run_needs(tmp_path, model_folder):
    facts = tmp_path / "facts.jsonl"
    facts.write_text('{"prompt": "{} is in", "subject": "Rome", "target": "Spain"}')
    command = ["check", str(facts), "--model.name", str(model_folder)]
    code = f"import sys; from sphere_pl.commands import run; run({command!r}); print('loaded:', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    out, _, modules = done.stdout.rpartition("loaded: ")
    assert "'Rome is in' + ' ' + 'Spain' = |" in out, done.stderr
    loaded = set(modules.split())
    assert "sphere_pl.model.opening" in loaded
    assert not loaded & (HEAVY | LIBRARIES)
