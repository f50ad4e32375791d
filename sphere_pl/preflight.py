"""How much memory a run will need, worked out on paper before it starts.

Everything follows from shapes: the model's, the edited matrices' and the batch's. What no formula knows (the
framework's own libraries, the allocator's slack) is left out, so the estimate is what a GPU will hold; a process on a
CPU has about 0.7 GB of libraries beside it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import lightning as L
from lightning.pytorch.callbacks import Callback
from transformers import PreTrainedModel
from typing_extensions import override

from sphere_pl.architectures import EditSite
from sphere_pl.data.datamodule import EditLoader
from sphere_pl.editor import SequentialEditor
from sphere_pl.methods.base import EditingMethod, Method
from sphere_pl.progress import EditProgress
from sphere_pl.prompts import in_context, tokenize

# Numbers kept for the backward pass for each token and block, in units of the hidden size and of the MLP's width:
# inputs of both norms in float32 and in the model's type, queries, keys, values, attention, residuals; gate, up,
# activation and product.
_PER_HIDDEN, _PER_WIDTH = 16, 5
_SCORES = 4  # float32 tensors of [tokens, vocabulary] that live at once: logits, their logarithms, both gradients


class Shapes(NamedTuple):
    """What memory depends on of a model and the matrices to edit.

    Attributes:
        parameters: Number of parameters.
        itemsize: Bytes of one.
        layers: Number of blocks.
        hidden: Hidden size.
        width: Input size of the edited matrices, d_in.
        output: Output size of the edited matrices, d_out.
        cached: Numbers that a key-value cache holds for each token and block.
        vocabulary: Number of tokens the head tells apart.
        edited: Numbers of the edited blocks.
    """

    parameters: int
    itemsize: int
    layers: int
    hidden: int
    width: int
    output: int
    cached: int
    vocabulary: int
    edited: tuple[int, ...]


class Batch(NamedTuple):
    """What the target optimisation of a batch depends on.

    Attributes:
        requests: Edits in a batch.
        contexts: Context templates, the empty one included.
        before: Tokens of a prompt before the subject's last one, the context's included.
        behind: Tokens from the subject's last one to the target's end.
        predicted: Tokens of a target.
        max_tokens: Tokens in one forward pass.
    """

    requests: int
    contexts: int
    before: int
    behind: int
    predicted: int
    max_tokens: int


class Need(NamedTuple):
    """Memory in bytes.

    Attributes:
        model: The language model.
        masters: Float32 copies of the edited matrices, and one update.
        moments: Second moments, while the method is being prepared.
        states: What the method keeps for all edited matrices: basis, memory of keys.
        targets: The target optimisation of one batch.
    """

    model: int
    masters: int
    moments: int
    states: int
    targets: int

    @property
    def peak(self) -> int:
        """The most that is held at once: second moments are given back before the first batch."""
        return self.model + self.masters + max(self.moments + self.states, self.states + self.targets)

    def line(self) -> str:
        """One line for people."""
        parts = {
            "model": self.model,
            "edited matrices": self.masters,
            "second moments": self.moments,
            "method": self.states,
            "targets of a batch": self.targets,
        }
        listed = ", ".join(f"{name} {amount / 1e9:.2f}" for name, amount in parts.items() if amount)
        return f"Memory: about {self.peak / 1e9:.1f} GB beside Python and its libraries ({listed})."


def need(shapes: Shapes, batch: Batch, method: Method) -> Need:
    """Estimate what a run holds.

    Args:
        shapes: Of the model and its edited matrices.
        batch: Of the largest batch.
        method: Says how much it keeps for a matrix; one without target values needs none of that optimisation.
    """
    matrix, count = shapes.width * shapes.output, len(shapes.edited)
    return Need(
        shapes.parameters * shapes.itemsize,
        4 * matrix * (count + 1),
        # In float32; the one at hand once more in the type of its decomposition, with its vectors.
        4 * shapes.width**2 * (count + 2) if method.needs_second_moment else 0,
        count * method.state_bytes(shapes.output, shapes.width),
        _targets(shapes, batch) if isinstance(method, EditingMethod) else 0,
    )


def _targets(shapes: Shapes, batch: Batch) -> int:
    """The cached prefix of all rows, and one forward pass kept for its gradient."""
    rows = batch.requests * batch.contexts
    above = shapes.layers - 1 - shapes.edited[-1]
    cache = rows * batch.before * shapes.layers * shapes.cached * shapes.itemsize
    tokens = min(rows * batch.behind, max(batch.max_tokens, batch.behind))
    share = tokens / (rows * batch.behind)
    kept = tokens * above * (_PER_HIDDEN * shapes.hidden + _PER_WIDTH * shapes.width) * shapes.itemsize
    scores = _SCORES * 4 * int(share * rows * batch.predicted) * shapes.vocabulary
    divergence = 2 * 4 * batch.requests * shapes.vocabulary
    return cache + kept + scores + divergence


def shapes_of(model: PreTrainedModel, sites: Sequence[EditSite]) -> Shapes:
    """Read the shapes off a model, which may have been made on the meta device."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    d_in, d_out = sites[0].stored.shape if sites[0].fan_in_fan_out else sites[0].stored.shape[::-1]
    return Shapes(
        sum(parameter.numel() for parameter in model.parameters()),
        model.dtype.itemsize,
        config.num_hidden_layers,
        config.hidden_size,
        d_in,
        d_out,
        2 * size * (getattr(config, "num_key_value_heads", None) or heads),
        config.vocab_size,
        tuple(site.layer for site in sites),
    )


class MemoryPreflight(Callback):
    """Say in one line, before anything large is made, how much memory the run will need."""

    @override
    def on_fit_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Show the estimate above the progress bar."""
        datamodule = getattr(trainer, "datamodule", None)
        if not isinstance(pl_module, SequentialEditor) or datamodule is None:
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            loader = datamodule.train_dataloader()
            if isinstance(callback, EditProgress) and isinstance(loader, EditLoader):
                callback.console.print(estimate(pl_module, loader).line(), highlight=False)


def estimate(editor: SequentialEditor, loader: EditLoader) -> Need:
    """What an editor will need for a stream, judged by its first batch."""
    lm, requests = editor.language_model, loader.requests[: loader.batch_size]
    tokens = tokenize(lm.tokenizer, [in_context(request, "", request.target_new) for request in requests])
    batch = Batch(
        len(requests),
        editor.n_contexts + 1,
        editor.context_length + max(entry.subject_last for entry in tokens),
        max(len(entry.ids) - entry.subject_last for entry in tokens),
        max(len(entry.target) for entry in tokens),
        editor.target_settings.max_tokens,
    )
    return need(shapes_of(lm.model, editor.sites), batch, editor.method)
