"""A pretrained causal language model, taken apart at the places that editing works on."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from sphere_pl.errors import UserError
from sphere_pl.model.architectures import (
    Architecture,
    architecture_of,
    context_length,
    corrected,
    has_module,
    is_described,
)
from sphere_pl.model.block_calls import (
    BlockCalls,
    BlockReachedError,
    moved_to,
    recorded_calls,
    stop_at_block,
    stream_of,
)
from sphere_pl.model.discovery import discover
from sphere_pl.model.families import EditSite, edit_sites, editable_layers, read_factor

PROMPT = "The capital of France is Paris, and it lies on the Seine."  # on which the parts are found and checked
LONGEST = 16  # tokens of it
_SHOWN = 8  # modules that an error names
Reading = Callable[[Sequence[str]], list[str]]  # from questions to what the model reads in their place
_FLOATS = {torch.float64, torch.float32, torch.bfloat16, torch.float16}


class LanguageModel(nn.Module):
    """A causal language model and its tokenizer, frozen and in eval mode for good.

    The blocks are called one by one through `run`, with the arguments that the model itself would pass
    (`block_calls`), so masks, rotary embeddings and per-layer attention types of every family are the model's own.

    The blocks may live on several devices (accelerate's device map). Tokens enter on `device`; `block_calls`, `run` and
    `logits` take tensors from anywhere, and what they return lies where it was computed: the output of a block on that
    block's device, logits on `output_device`.

    Args:
        model: A Hugging Face causal language model.
        tokenizer: Its fast tokenizer.
        architecture: Where its parts are, in the place of what the table says or, for a family that is not in it, of
            what is found on the model itself; see `architecture_of` and `discover`.

    Raises:
        UserError: If the parts of the model are not found, its architecture names modules that it does not have, its
            weights are packed, or the tokenizer gives no character offsets.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, architecture: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        if not tokenizer.is_fast:
            raise UserError(
                f"The tokenizer {type(tokenizer).__name__} gives no character offsets, which find the subject's last "
                "token. Load a fast tokenizer (tokenizer.json)."
            )
        self.reading: Reading | None = None
        self.own_attention = False  # for gradients as well; found out when the parts are checked
        self.stays = False  # where it is, whatever the module that holds it is told: it belongs to the caller
        self.own_masks = False  # whether it takes no mask but its own; found out likewise
        self.cached = True  # whether tokens can be added to what is cached; found out likewise
        _check_plain(model)
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.config = model.config.get_text_config()
        self.described = is_described(model.config.model_type, architecture)
        self.architecture = self._architecture(architecture or {})
        self._check_paths(model)
        self._logit_scale = read_factor(self.architecture.logit_scale, self.config, model.config)
        # In a tuple, which registers them no second time: they are asked for at every call.
        self._blocks = tuple(model.get_submodule(self.architecture.block.format(n)) for n in range(self.n_layers))
        # What differs between releases of transformers is found out now, before anybody's hooks are on the model.
        taken = inspect.signature(model.base_model.forward).parameters.values()
        self._arguments = {parameter.name for parameter in taken}
        self._takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken)
        self._cache_argument = "cache" if "cache" in self._arguments else "past_key_values"  # renamed in 5.24
        self._returned = self._items_returned()

    def _architecture(self, own: Mapping[str, Any]) -> Architecture:
        """Where the parts are: by the table and the user, or found."""
        if self.described:
            return architecture_of(self.model.config.model_type, own)
        ids = torch.tensor([self.tokenizer(PROMPT)["input_ids"][:LONGEST]], device=self.device)
        return corrected(discover(self.model, ids), own)

    def _check_paths(self, model: PreTrainedModel) -> None:
        """Refuse an architecture that does not fit the model, by the name of what is missing."""
        last = self.architecture.block.format(self.n_layers - 1)
        for name, path in (("block", last), ("final_norm", self.architecture.final_norm)):
            if not has_module(model, path):
                raise UserError(
                    f"The architecture names {path!r} as its {name}, which is no module of this "
                    f"{model.config.model_type} model. Its modules begin with {', '.join(_first_paths(model))}. "
                    "Correct --model.architecture."
                )
        blocks = [model.get_submodule(self.architecture.block.format(layer)) for layer in range(self.n_layers)]
        mixers = (self.architecture.attention, *self.architecture.mixers)
        if not any(has_module(block, path) for block in blocks for path in mixers):
            raise UserError(
                f"The architecture names {self.architecture.attention!r} as its attention, which is no module of this "
                f"{model.config.model_type} model's blocks. They hold "
                f"{', '.join(name for name, _ in blocks[0].named_children())}. Correct --model.architecture."
            )

    @property
    def recurrent(self) -> bool:
        """Whether some blocks keep a state in the place of keys and values: every prompt is run whole then."""
        return self.architecture.recurrent

    def read(self, questions: Sequence[str]) -> list[str]:
        """What the model reads where it is asked: the questions, or what `reading` makes of them.

        Set `reading` to put something in front of questions, such as a fact that is edited into no weight; None reads
        them as they are. Texts that are no questions, such as those for perplexity and second moments, do not pass
        through here.
        """
        return list(questions) if self.reading is None else self.reading(questions)

    def train(self, mode: bool = True) -> "LanguageModel":
        """Stay in eval mode: editing differentiates through the model but never trains it (GPT-2 has dropout)."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where the embeddings live."""
        return cast(Tensor, self.model.get_input_embeddings().weight).device

    @property
    def output_device(self) -> torch.device:
        """Where logits are computed."""
        return _device_of(self.model.get_output_embeddings())

    @property
    def spread(self) -> bool:
        """Whether the model lies on more than one device."""
        return len({parameter.device for parameter in self.model.parameters()}) > 1

    def _apply(self, fn: Any, recurse: bool = True) -> "LanguageModel":
        """Leave a model that is spread over devices where it is, no single one need have room; and one that stays."""
        return self if self.spread or self.stays else super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the residual stream."""
        return cast(torch.dtype, self.model.dtype)

    @property
    def n_layers(self) -> int:
        """How many decoder blocks the model has."""
        return int(self.config.num_hidden_layers)

    @property
    def context(self) -> int:
        """How many tokens the model reads; see `context_length`."""
        return int(context_length(lambda name: getattr(self.config, name, None)) or 0)

    @property
    def pad_id(self) -> int:
        """A token to fill rows with. Which one does not matter: padded columns are masked everywhere."""
        return int(self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0)

    def block(self, layer: int) -> nn.Module:
        """The decoder block number `layer`."""
        return self._blocks[layer]

    def sites(self, layers: Sequence[int]) -> list[EditSite]:
        """The matrices to edit in `layers`; see `edit_sites`."""
        return edit_sites(self.model, self.architecture, self.config, list(layers), self.n_layers)

    def editable_layers(self) -> list[int]:
        """Numbers of the blocks that have a matrix to edit.

        Raises:
            UserError: If none has, as in a model that consists of routed experts.
        """
        found = editable_layers(self.architecture, self._blocks)
        return found or [site.layer for site in self.sites([0])]

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
        input_ids, attention_mask, position_ids = (
            each.to(self.device) for each in (input_ids, attention_mask, position_ids)
        )
        calls = BlockCalls(input_ids, [], [], [])
        entering: list[Tensor] = []
        with recorded_calls(self._blocks, calls, entering, self._answer):
            self.model.base_model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                use_cache=cache is not None,
                **({"position_ids": position_ids} if self.takes_positions else {}),
                **({self._cache_argument: cache} if self._takes(self._cache_argument) else {}),
            )
        if len(entering) != self.n_layers:
            raise ValueError(f"{len(entering)} blocks are called where there are {self.n_layers}")
        devices = [_device_of(self.block(layer)) for layer in range(self.n_layers)]
        return calls._replace(hidden=entering[0]).placed(devices)

    @property
    def takes_positions(self) -> bool:
        """Whether the model is told the position of each token; one that is not finds it, or none, by itself."""
        return self._takes("position_ids")

    def _takes(self, name: str) -> bool:
        return self._takes_any or name in self._arguments

    @torch.no_grad()
    def _items_returned(self) -> int:
        """How many items a block returns, 0 if no tuple, found out by calling the first one: releases differ in it."""
        ids = torch.full((1, 1), self.pad_id, device=self.device)
        calls, entering = BlockCalls(ids, [], [], []), cast(list[Tensor], [])
        with suppress(BlockReachedError), recorded_calls(self._blocks, calls, entering, stop_at_block):
            self.model.base_model(input_ids=ids, use_cache=False)
        block, device = self.block(0), _device_of(self.block(0))
        args, kwargs = (moved_to(part[0], device, {}) for part in (calls.args, calls.kwargs))
        output = block(entering[0].to(device), *args, **kwargs)
        return len(output) if isinstance(output, tuple) else 0

    def _answer(self, hidden: Tensor) -> Any:
        """What a block that adds nothing returns."""
        return (hidden, *(None for _ in range(1, self._returned))) if self._returned else hidden

    def new_cache(self) -> DynamicCache:
        """An empty cache that grows by what the blocks put in it: keys and values, or states."""
        return DynamicCache(config=self.config) if self.recurrent else DynamicCache()

    def run(self, hidden: Tensor, calls: BlockCalls, start: int, stop: int) -> Tensor:
        """Run blocks `start` to `stop - 1` on `hidden` of shape `[rows, columns, d]`."""
        for layer in range(start, stop):
            output = self.block(layer)(hidden.to(calls.devices[layer]), *calls.args[layer], **calls.kwargs[layer])
            hidden = stream_of(output)
        return hidden

    def takes_masks(self, length: int) -> bool:
        """Whether texts of `length` tokens can be run under a mask of one's own, added to the attention scores.

        A sliding window or a chunk looks at columns, not at positions, a recurrent layer at all columns, and so does a
        bias of the scores by distance (ALiBi) or a window of the attention's own (GPT-Neo's `window_size`); flash
        attention knows no masks.
        """
        if self.recurrent or self.own_masks or not self.takes_positions:
            return False
        if any(getattr(self.config, name, False) for name in ("alibi", "window_size")):
            return False
        windows = [getattr(self.config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        seen = all(window is None or length <= window for window in windows)
        return seen and self.model.config._attn_implementation in {"sdpa", "eager"}

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits `[..., vocabulary]`, float32 and new, from the last block's output `[..., d]`."""
        norm = self.model.get_submodule(self.architecture.final_norm)
        head = cast(nn.Module, self.model.get_output_embeddings())
        logits = head(norm(hidden.to(_place_of(norm, head))).to(_device_of(head))).float()
        logits = logits if self._logit_scale == 1.0 else logits * self._logit_scale
        cap = getattr(self.config, "final_logit_softcapping", None)
        return cast(Tensor, logits if cap is None else cap * torch.tanh(logits / cap))


def _check_plain(model: PreTrainedModel) -> None:
    """Refuse a model whose matrices are packed: what is written to them would be something else."""
    packed = [name for name, parameter in model.named_parameters() if parameter.dtype not in _FLOATS]
    if packed or getattr(model, "hf_quantizer", None) is not None:
        raise UserError(
            f"The model is quantised ({packed[0] if packed else type(model.hf_quantizer).__name__}): its matrices are "
            "packed and cannot be edited. Load the unquantised model."
        )


def _device_of(module: nn.Module) -> torch.device:
    """Where a module that lives on one device lives."""
    return next(module.parameters()).device


def _place_of(module: nn.Module, other: nn.Module) -> torch.device:
    """Where a module lives; where another one does if it has no parameters (OLMo's norms)."""
    return next((parameter.device for parameter in module.parameters()), None) or _device_of(other)


def _first_paths(model: nn.Module) -> list[str]:
    """The outermost modules and those inside them, to show what paths look like."""
    return [name for name, _ in model.named_modules() if name and name.count(".") <= 1][:_SHOWN]
