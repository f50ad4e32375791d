"""What is said when a run finds too little memory: what it was expected to need, what is free, and what needs less."""

from collections.abc import Iterator

import torch

from sphere_pl.data.datamodule import EditDataModule
from sphere_pl.editor import SequentialEditor
from sphere_pl.model.batching import MOST_TOKENS
from sphere_pl.process.memory import free_memory
from sphere_pl.run.preflight import estimate

_LEAST_TOKENS = 64  # a pass of fewer saves no more memory


def shortage(editor: SequentialEditor, data: EditDataModule) -> str:
    """Two lines; what cannot be found out, now that there is no memory, is left out."""
    return "\n".join(line for line in (_amounts(editor, data), _less(editor, data.batch_size)) if line)


def _amounts(editor: SequentialEditor, data: EditDataModule) -> str:
    """Expected and free memory."""
    try:
        device = editor.language_model.device if editor.lm is not None else editor.device
        free = f"{free_memory(device) / 1e9:.2f} GB are free on {device}."
        if not editor.sites:
            return free
        need = estimate(editor, data.train_dataloader())
    except Exception:  # the run's own end is what has to be said
        return ""
    return f"The run was expected to need about {need.peak / 1e9:.2f} GB beside Python and its libraries; {free}"


def _less(editor: SequentialEditor, batch_size: int) -> str:
    return f"What needs less, best first, in a new run: {', '.join(levers(editor, batch_size))}."


def levers(editor: SequentialEditor, batch_size: int) -> Iterator[str]:
    """Options that make a run need less memory, those first that cost least."""
    if batch_size > 1:
        yield f"--data.batch_size {batch_size // 2} (was {batch_size})"
    tokens = editor.max_tokens or MOST_TOKENS
    if tokens > _LEAST_TOKENS:
        yield f"--model.targets.max_tokens {max(_LEAST_TOKENS, tokens // 4)} (was {tokens})"
    if editor.offload.home is None and editor.device.type != "cpu":
        yield "--model.statistics_device cpu"
    if editor.lm is None or editor.lm.dtype == torch.float32:
        yield "--model.dtype bfloat16"
    if editor.n_contexts and editor.method.needs_targets:
        yield f"--model.contexts {editor.n_contexts // 2} (was {editor.n_contexts})"
    if editor.evaluation.batch_size > 1:
        yield f"--model.evaluation.batch_size {editor.evaluation.batch_size // 4 or 1} (for scoring)"
    yield "fewer --model.layers"
    yield "a smaller model or --model.device_map auto over several accelerators"
