"""What runs on large models will need, from their shapes alone: `python -m benchmarks.memory`.

With `--measure` the estimate for the default run is compared with what its preparation and first batch really take.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.language_models import SHAPES
from sphere_pl.data.datamodule import EditDataModule
from sphere_pl.editing.kept_moments import second_moments
from sphere_pl.editing.memory_estimate import Batch, Need, Shapes, fitting_tokens, largest_pass, need, shapes_of
from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.editing.representations import SubjectStream
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editing.targets import optimize_targets
from sphere_pl.editor import SequentialEditor
from sphere_pl.methods import MEMIT, AlphaEdit, KnownProblem
from sphere_pl.methods.base import Method
from sphere_pl.model.architectures import architecture_of
from sphere_pl.model.families import edit_sites
from sphere_pl.progress import untracked
from sphere_pl.run.preflight import estimate

MODELS = {"LLaMA3-8B": SHAPES["llama3-8b"], "Qwen2.5-7B": SHAPES["qwen2.5-7b"]}
LAYERS = [4, 5, 6, 7, 8]
CONTEXT = 600_000_000  # bytes of a card that the driver and the libraries' kernels take
PLACES = ((80, False), (48, False), (24, True))  # GiB of a card, and whether statistics are held in main memory


def shapes(sizes: dict[str, object]) -> Shapes:
    """Shapes of a model in bfloat16 that is never filled with numbers."""
    settings = dict(sizes)
    config = AutoConfig.for_model(str(settings.pop("model_type")), **settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    architecture = architecture_of(config.model_type)
    return shapes_of(model, edit_sites(model, architecture, config, LAYERS, config.num_hidden_layers))


def table() -> str:
    """Batches of 100, six contexts, prompts of 20 tokens to the subject's last and 8 after it, targets of 2."""
    methods: dict[str, Method] = {"AlphaEdit": AlphaEdit(), "MEMIT": MEMIT()}
    lines = [
        "| GB | card | statistics_device | tokens in a pass | model | edited | second moments | method | one matrix "
        "| targets | peak |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, sizes in MODELS.items():
        found = shapes(sizes)
        for label, method in methods.items():
            lines += [f"| {name}, {label} | {_row(found, method, *place)} |" for place in PLACES]
    return "\n".join(lines)


def _row(found: Shapes, method: Method, card: int, elsewhere: bool) -> str:
    """What a run needs with the micro-batches that it will choose on a card of `card` GiB."""

    def need_of(tokens: int) -> Need:
        lengths = [8] * 600
        return need(found, Batch(100, 6, 20, 8, 2, largest_pass(lengths, tokens)), method, elsewhere)

    available = card * 2**30 - CONTEXT
    tokens = fitting_tokens(available, need_of)
    estimated = need_of(tokens)
    parts = " | ".join(f"{part / 1e9:.1f}" for part in (*estimated, estimated.peak))
    short = "" if estimated.peak <= available else " (does not fit)"
    return f"{card} GiB | {'cpu' if elsewhere else 'null'} | {tokens} | {parts}{short}"


def measured() -> tuple[int, int]:
    """Bytes beyond the libraries' own: estimated, and seen by the operating system up to the first batch's end."""
    data = EditDataModule(limit=10, batch_size=10)
    data.setup("fit")
    method, settings = AlphaEdit(), TargetSettings(learning_rate=0.5, clamp=4.0, weight_decay=1e-3, stop_loss=0.3)
    libraries = _resident("VmRSS")
    editor = SequentialEditor(method, [2, 3, 4, 5, 6], dtype="bfloat16", contexts=2, targets=settings)
    editor.configure_model()
    estimated = estimate(editor, data.train_dataloader()).peak
    lm = editor.language_model
    moments = second_moments(lm, editor.sites, StatisticsSettings(), untracked)
    states = [method.initial_state(site.read(), moments[site.name].matrix) for site in editor.sites]
    optimize_targets(lm, data.requests, ["", "It is said. ", "We saw that. "], 6, settings)
    for keys, state in zip(SubjectStream(lm, data.requests, [""], 2).all_keys(editor.sites), states, strict=True):
        method.remember(KnownProblem(keys, keys), state)
    return estimated, _resident("VmHWM") - libraries


def _resident(field: str) -> int:
    """A figure of the process's own memory, in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}.")


def main() -> None:
    """Print the table, or the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    if parser.parse_args().measure:
        estimated, seen = measured()
        print(f"estimated {estimated / 1e9:.2f} GB, seen {seen / 1e9:.2f} GB")
    else:
        print(table())


if __name__ == "__main__":
    main()
