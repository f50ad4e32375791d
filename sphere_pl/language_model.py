"""A pretrained causal language model, taken apart at the places that editing works on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.utils import logging as transformers_logging

from sphere_pl.architectures import EditSite, architecture_of, edit_sites
from sphere_pl.embedded import EMBEDDED_MODEL, embedded_model
from sphere_pl.errors import UserError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class BlockCalls(NamedTuple):
    """How the model would call its own blocks for one input.

    Attributes:
        hidden: The residual stream that enters block 0, shape `[rows, columns, d]`.
        args: Positional arguments of each block after the hidden state.
        kwargs: Keyword arguments of each block: masks, position embeddings, cache.
    """

    hidden: Tensor
    args: list[tuple[Any, ...]]
    kwargs: list[dict[str, Any]]

    def replace(self, old: Any, new: Any) -> "BlockCalls":
        """Put `new` wherever the very object `old` is passed (the cache, in practice)."""
        args = [tuple(new if value is old else value for value in call) for call in self.args]
        kwargs = [{key: new if value is old else value for key, value in call.items()} for call in self.kwargs]
        return BlockCalls(self.hidden, args, kwargs)


class LanguageModel(nn.Module):
    """A causal language model and its tokenizer, frozen and in eval mode for good.

    The blocks are called one by one through `run`, with the arguments that the model itself would pass
    (`block_calls`), so masks, rotary embeddings and per-layer attention types of every family are the model's own.

    Args:
        model: A Hugging Face causal language model.
        tokenizer: Its fast tokenizer.

    Raises:
        UserError: If the model's type is unknown or the tokenizer cannot give character offsets.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any) -> None:
        super().__init__()
        if not tokenizer.is_fast:
            raise UserError(
                f"The tokenizer {type(tokenizer).__name__} gives no character offsets, which find the subject's last "
                "token. Load a fast tokenizer (tokenizer.json)."
            )
        self.architecture = architecture_of(model.config.model_type)
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.config = model.config.get_text_config()

    def train(self, mode: bool = True) -> "LanguageModel":
        """Stay in eval mode: editing differentiates through the model but never trains it (GPT-2 has dropout)."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where the embeddings live."""
        return cast(Tensor, self.model.get_input_embeddings().weight).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the residual stream."""
        return cast(torch.dtype, self.model.dtype)

    @property
    def n_layers(self) -> int:
        """How many decoder blocks the model has."""
        return int(self.config.num_hidden_layers)

    @property
    def pad_id(self) -> int:
        """A token to fill rows with. Which one does not matter: padded columns are masked everywhere."""
        return int(self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0)

    def block(self, layer: int) -> nn.Module:
        """The decoder block number `layer`."""
        return cast(nn.Module, self.model.get_submodule(self.architecture.block.format(layer)))

    def sites(self, layers: Sequence[int]) -> list[EditSite]:
        """The matrices to edit in `layers`; see `edit_sites`."""
        return edit_sites(self.model, self.model.config.model_type, list(layers), self.n_layers)

    @torch.no_grad()
    def block_calls(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        cache: Any = None,
    ) -> BlockCalls:
        """Ask the model how it would call its blocks, without running any of them.

        Args:
            input_ids: Tokens, shape `[rows, columns]`.
            attention_mask: 1 for real tokens, shape `[rows, cached columns + columns]`; or what is added to the
                attention scores, shape `[rows, 1, columns, columns]` (see `takes_masks`).
            position_ids: Position of each token, shape `[rows, columns]`.
            cache: A Hugging Face cache that holds the columns before these, or takes these in.
        """
        calls = BlockCalls(input_ids, [], [])
        entering: list[Tensor] = []
        with _recording(self, calls, entering):
            self.model.base_model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        return calls._replace(hidden=entering[0])

    def run(self, hidden: Tensor, calls: BlockCalls, start: int, stop: int) -> Tensor:
        """Run blocks `start` to `stop - 1` on `hidden` of shape `[rows, columns, d]`."""
        for layer in range(start, stop):
            output = self.block(layer)(hidden, *calls.args[layer], **calls.kwargs[layer])
            hidden = output[0] if self.architecture.returns_tuple else output
        return hidden

    def takes_masks(self, length: int) -> bool:
        """Whether texts of `length` tokens can be run under a mask of one's own, added to the attention scores.

        A sliding window looks at columns, not at positions, and flash attention knows no masks.
        """
        window = getattr(self.config, "sliding_window", None)
        return (window is None or length <= window) and self.model.config._attn_implementation in {"sdpa", "eager"}

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits `[..., vocabulary]` in float32 from the last block's output `[..., d]`."""
        normed = self.model.get_submodule(self.architecture.final_norm)(hidden)
        head = cast(nn.Module, self.model.get_output_embeddings())
        logits = head(normed).float()
        cap = getattr(self.config, "final_logit_softcapping", None)
        return cast(Tensor, logits if cap is None else cap * torch.tanh(logits / cap))


@contextmanager
def _recording(lm: LanguageModel, calls: BlockCalls, entering: list[Tensor]) -> Iterator[None]:
    """Make every block note its arguments and hand its input through."""
    blocks = [lm.block(layer) for layer in range(lm.n_layers)]

    def recorder(*args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
        named = "hidden_states" in kwargs
        hidden = kwargs.pop("hidden_states") if named else args[0]
        entering.append(hidden)
        calls.args.append(args if named else args[1:])
        calls.kwargs.append(kwargs)
        return (hidden,) if lm.architecture.returns_tuple else hidden

    for block in blocks:
        block.forward = recorder
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


class FrozenPrefix:
    """A key-value cache that can be attended to any number of times and never grows.

    Stands in for a Hugging Face cache inside the attention layers: `update` returns the cached columns followed by
    the new ones and forgets the new ones, so that the same suffix can be run again with other hidden states.

    Args:
        keys: Keys of each layer, shape `[rows, heads, cached columns, head_dim]`.
        values: Values of each layer, the same shape.
    """

    is_compileable = False

    def __init__(self, keys: list[Tensor], values: list[Tensor]) -> None:
        self.keys = keys
        self.values = values

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return the columns of `layer` before and including the new ones."""
        return torch.cat([self.keys[layer], keys], dim=-2), torch.cat([self.values[layer], values], dim=-2)

    def select(self, rows: Tensor) -> "FrozenPrefix":
        """Keep only some rows."""
        return FrozenPrefix(
            [k.index_select(0, rows) for k in self.keys], [v.index_select(0, rows) for v in self.values]
        )

    def expand(self, rows: int) -> "FrozenPrefix":
        """Let a prefix of one row stand before any number of rows, without a copy."""
        return FrozenPrefix(
            [k.expand(rows, -1, -1, -1) for k in self.keys], [v.expand(rows, -1, -1, -1) for v in self.values]
        )

    def calls(self, lm: LanguageModel, ids: Tensor, mask: Tensor, positions: Tensor) -> BlockCalls:
        """How the blocks are called for a suffix behind this prefix.

        Args:
            lm: The language model.
            ids: Tokens of the suffix, shape `[rows, columns]`.
            mask: 1 for real tokens, shape `[rows, cached columns + columns]`.
            positions: Position of each token of the suffix, shape `[rows, columns]`.
        """
        if not self.keys:
            return lm.block_calls(ids, mask, positions)
        # The model only asks a cache for its length when it makes masks: one that holds a single zero a column will do.
        blank = ids.new_zeros(1, 1, self.keys[0].shape[-2], 1, dtype=torch.float32)
        stand_in = DynamicCache()
        for layer in range(lm.n_layers):
            stand_in.update(blank, blank, layer)
        return lm.block_calls(ids, mask, positions, stand_in).replace(stand_in, self)


def run_prefix(lm: LanguageModel, ids: Tensor, mask: Tensor) -> FrozenPrefix:
    """Run the columns that several suffixes will stand behind, through all blocks.

    Args:
        lm: The language model.
        ids: Tokens, shape `[rows, columns]`; without columns the prefix is empty.
        mask: 1 for real tokens, shape `[rows, columns]`. A row may have none.
    """
    if ids.shape[1] == 0:
        return FrozenPrefix([], [])
    cache = DynamicCache()
    # A row without a real token would attend to nothing and turn into NaN: let it see its padding here. The suffix's
    # own mask hides that column again.
    visible = mask.clone()
    visible[:, 0] = 1
    calls = lm.block_calls(ids, visible, torch.arange(ids.shape[1], device=ids.device).expand_as(ids), cache)
    lm.run(calls.hidden, calls, 0, lm.n_layers)
    layers = cast(list[DynamicLayer], cache.layers)
    return FrozenPrefix(
        [cast(Tensor, entry.keys) for entry in layers], [cast(Tensor, entry.values) for entry in layers]
    )


def load_language_model(
    name: str = EMBEDDED_MODEL,
    dtype: Dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    cache_dir: str | None = None,
) -> LanguageModel:
    """Load a model and its tokenizer.

    Args:
        name: A hub id, a local folder, or the name of the embedded default model.
        dtype: Floating-point type of the weights; `auto` takes the checkpoint's own.
        revision: Branch, tag or commit of a hub model.
        trust_remote_code: Whether code from the hub may run.
        cache_dir: Where the embedded model is kept; the user's cache folder if None.

    Raises:
        UserError: If the model is neither a folder nor to be had from the hub.
    """
    source: str | Path = embedded_model(cache_dir) if name == EMBEDDED_MODEL else name
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
        architecture_of(config.model_type)
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
        )
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except UserError:
        raise
    except (OSError, KeyError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise UserError(_not_loaded(name, error)) from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    return LanguageModel(model, tokenizer)


def _not_loaded(name: str, error: Exception) -> str:
    reason = str(error).strip().split("\n")[0]
    return (
        f"The model {name!r} could not be loaded: {reason} "
        "Give --model.name a hub id that you can reach, or a local folder with config.json, the weights as safetensors "
        f"and tokenizer.json, or leave it out to edit the embedded default ({EMBEDDED_MODEL})."
    )
