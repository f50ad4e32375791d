"""From a name to a language model: the weights of a model that has been opened, and whether they are whole."""

from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from sphere_pl.errors import UserError
from sphere_pl.model.architectures import Architecture, architecture_of, context_length, is_described
from sphere_pl.model.embedded import EMBEDDED_MODEL
from sphere_pl.model.gguf import dequantized
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.opening import (
    DeviceMap,
    Dtype,
    OpenedModel,
    Source,
    as_user_error,
    check_kind,
    open_model,
    quiet,
)
from sphere_pl.model.products import widen_products
from sphere_pl.model.self_check import check_parts, taken_apart

__all__ = [
    "DeviceMap",
    "Dtype",
    "OpenedModel",
    "Source",
    "load_language_model",
    "load_weights",
    "model_in_memory",
    "open_model",
]

_SHOWN = 3  # tensors that an error names


def load_language_model(
    name: str = EMBEDDED_MODEL,
    dtype: Dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    cache_dir: str | None = None,
    device_map: DeviceMap = None,
    architecture: dict[str, Any] | None = None,
) -> LanguageModel:
    """Load a model and its tokenizer.

    Args:
        name: A hub id, a local folder, a GGUF file, or the name of the embedded default model.
        dtype: Floating-point type of the weights; `auto` takes the checkpoint's own, float16 for a quantised GGUF file.
        revision: Branch, tag or commit of a hub model.
        trust_remote_code: Whether code from the hub may run.
        cache_dir: Where the embedded model is kept; the user's cache folder if None.
        device_map: How the layers are spread over the devices of this process: `auto`, evenly; how much of the model
            each device may take, filled in this order, `{"0": "20GiB", "1": "70GiB"}`; or a device for each module,
            `{"model.embed_tokens": 0, "model.layers.0": 1, ...}`. All on the CPU if None.
        architecture: Where a model's parts are, for a family that is not in the table (docs/models.md): attributes of
            `sphere_pl.model.families.Architecture`, such as `{"block": "model.layers.{}", ...}`.

    Raises:
        UserError: If the model is neither at hand nor to be had from the hub, is not one that can be edited, or does
            not fit the devices.
    """
    return load_weights(open_model(name, revision, trust_remote_code, cache_dir, architecture), dtype, device_map)


def load_weights(opened: OpenedModel, dtype: Dtype = "auto", device_map: DeviceMap = None) -> LanguageModel:
    """Load the weights of an opened model.

    Args:
        opened: The model.
        dtype: See `load_language_model`.
        device_map: See `load_language_model`.

    Raises:
        UserError: If weights are missing, damaged or not finite, do not fit the tokenizer, or have no room.
    """
    source = opened.source
    placing = _placement(device_map)
    dtype = source.dtype if dtype == "auto" else dtype
    if source.gguf:
        # The configuration is there: to read it from the file again takes seconds.
        placing |= {**dequantized(), "config": opened.config}
    with quiet(), as_user_error(source, device_map, (torch.OutOfMemoryError,)):
        load: Any = _class_of(opened).from_pretrained  # typed as if it returned the model alone
        loaded: tuple[PreTrainedModel, dict[str, Any]] = load(
            source.place, dtype=dtype, output_loading_info=True, **source.options, **placing
        )
    model, info = loaded
    if source.gguf:
        _forget_quantisation(model, dtype)
    widen_products(model)
    _check_complete(source.name, info)
    return _checked(source.name, model, opened.tokenizer, opened.architecture)


def _class_of(opened: OpenedModel) -> Any:
    """What loads a model: as a causal language model if there is one of its kind, with what it sees by if not."""
    kind, saved = type(opened.config), opened.config.architectures or []
    seeing: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(kind, None)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForImageTextToText if seeing else AutoModelForCausalLM
    if is_described(opened.config.model_type, opened.architecture):
        return AutoModelForCausalLM
    classes = seeing if isinstance(seeing, tuple) else (seeing,)
    whole = next((each for each in classes if each is not None and each.__name__ in saved), None)
    return whole or AutoModelForCausalLM


def model_in_memory(
    name: str, model: PreTrainedModel, tokenizer: Any, architecture: dict[str, Any] | None = None
) -> tuple[OpenedModel, LanguageModel]:
    """Take a model that is loaded already; it stays where it is.

    Args:
        name: What messages and results call it.
        model: The model.
        tokenizer: Its tokenizer.
        architecture: See `load_language_model`.

    Raises:
        UserError: If it is not one that can be edited, as for a model that is loaded by its name.
    """
    check_kind(name, model.config.to_dict(), trust_remote_code=True)
    lm = _checked(name, model, tokenizer, architecture)
    lm.stays = True
    return OpenedModel(Source(name, name, {}), model.config, tokenizer, architecture), lm


def _checked(name: str, model: PreTrainedModel, tokenizer: Any, architecture: dict[str, Any] | None) -> LanguageModel:
    """The language model of weights and a tokenizer that belong together, are whole, finite and at hand."""
    _check_vocabulary(name, model, tokenizer)
    _check_length(name, model)
    if is_described(model.config.model_type, architecture):
        _check_whole(model, architecture_of(model.config.model_type, architecture))
    _check_room(model)
    _check_finite(name, model)
    with taken_apart(model):
        lm = LanguageModel(model, tokenizer, architecture)
        _check_whole(model, lm.architecture)
        check_parts(lm)
    return lm


def _forget_quantisation(model: PreTrainedModel, dtype: str) -> None:
    """Make a model whose weights were unpacked at load a plain one: it refuses to be saved as long as it is not."""
    model.to(getattr(torch, dtype))
    model.config.__dict__.pop("quantization_config", None)
    model.config.dtype = getattr(torch, dtype)
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        vars(model).pop(name, None)
    model.generation_config = GenerationConfig.from_model_config(model.config)


def _check_complete(name: str, info: dict[str, Any]) -> None:
    """Refuse tensors that transformers would make up, with a warning alone."""
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise UserError(
            f"The model {name!r} has no weights for {', '.join(missing[:_SHOWN])}{more}: they would be random numbers. "
            "Give --model.name a whole causal language model; was this one saved without its head, or is it of "
            "another kind?"
        )


def _check_vocabulary(name: str, model: PreTrainedModel, tokenizer: Any) -> None:
    """Refuse a tokenizer that gives tokens for which the model has no embedding.

    Placeholders of other kinds of input may lie outside: Gemma 3's text models share the tokenizer of those that see.
    """
    rows = len(cast(Tensor, model.get_input_embeddings().weight))
    outside = {word: index for word, index in tokenizer.get_vocab().items() if index >= rows}
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    added = tokenizer.added_tokens_decoder
    words = [word for word, index in outside.items() if index in used or index not in added or not added[index].special]
    if words:
        word = min(words, key=lambda each: outside[each])
        raise UserError(
            f"The tokenizer of the model {name!r} is larger than its embedding: {len(words)} tokens, from {word!r} "
            f"(number {outside[word]}) on, have no row among {rows}. Put the tokenizer there that belongs to these "
            "weights, or resize the model with model.resize_token_embeddings(len(tokenizer)) and save it."
        )


def _check_length(name: str, model: PreTrainedModel) -> None:
    """Refuse a configuration that does not say how many tokens the model reads."""
    config = model.config.get_text_config()
    if not context_length(lambda entry: getattr(config, entry, None)):
        raise UserError(
            f"The configuration of the model {name!r} ({config.model_type}) has no `max_position_embeddings`, which "
            "says how many tokens it reads at most. Write the number into config.json, or set it on model.config."
        )


def _check_finite(name: str, model: PreTrainedModel) -> None:
    """Refuse weights that are not finite; one pass over them, without a copy."""
    for tensor, parameter in model.named_parameters():
        if parameter.is_meta or not parameter.numel():
            continue
        low, high = parameter.detach().aminmax()
        if not (low.isfinite() and high.isfinite()):
            bad = int((~parameter.detach().isfinite()).sum())
            reason = " (numbers beyond float16 become infinite: is that it? Choose --model.dtype=bfloat16)"
            raise UserError(
                f"The model {name!r} holds values that are not finite: {bad} of {tensor}"
                f"{reason if parameter.dtype == torch.float16 else ''}. Fetch it again, or take a checkpoint from "
                "before its training diverged."
            )


def _placement(device_map: DeviceMap) -> dict[str, Any]:
    """What transformers is asked for.

    Example:
        >>> _placement({"0": "20GiB", "1": "70GiB"})
        {'device_map': 'sequential', 'max_memory': {0: '20GiB', 1: '70GiB'}}
    """
    if device_map is None:
        return {}
    if isinstance(device_map, dict) and device_map and all(str(name).isdigit() for name in device_map):
        return {"device_map": "sequential", "max_memory": {int(name): most for name, most in device_map.items()}}
    return {"device_map": device_map}


def _check_whole(model: PreTrainedModel, architecture: Architecture) -> None:
    """Refuse blocks that are cut in pieces."""
    path = architecture.block
    for layer in range(model.config.get_text_config().num_hidden_layers):
        try:
            block = model.get_submodule(path.format(layer))
        except AttributeError:  # a description that does not fit is refused when the model is taken apart
            return
        devices = {str(parameter.device) for parameter in block.parameters()}
        if len(devices) > 1:
            raise UserError(
                f"The device map puts block {layer} on several devices ({', '.join(sorted(devices))}). Keep each block "
                "whole: name it in --model.device_map, not its parts."
            )


def _check_room(model: PreTrainedModel) -> None:
    """Refuse weights that come and go."""
    away = sum(parameter.is_meta for parameter in model.parameters())
    if away:
        raise UserError(
            f"The devices have no room for {away} of the model's tensors, so they would be fetched from main memory or "
            "disk at every call; the gradients through them need them all at once. Use more devices, let "
            "--model.device_map take more of each, or choose a smaller --model.dtype."
        )
