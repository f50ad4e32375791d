"""The command line answers without loading what it does not need yet."""

# torchmetrics brings transformers and accelerate with it, and lightning torchmetrics.
HEAVY = {"datasets", "wandb", "plotly", "gguf", "transformers.models.llama.modeling_llama"}


def test_help_loads_no_library_that_only_a_run_needs(fresh_help):
    loaded = fresh_help[2]
    assert "sphere_pl.commands.fit" in loaded
    assert not loaded & HEAVY
