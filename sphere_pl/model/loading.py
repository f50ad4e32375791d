"""From a name to a language model: where it is, whether it is one that can be edited, and its weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging
from transformers.utils.peft_utils import find_adapter_config_file

from sphere_pl.errors import UserError
from sphere_pl.model.embedded import EMBEDDED_MODEL, embedded_model
from sphere_pl.model.families import ARCHITECTURES, architecture_of
from sphere_pl.model.files import check_adapter, check_folder, gguf_of, local_model, suggestion
from sphere_pl.model.gguf import dequantized, gguf_dtype
from sphere_pl.model.hub import cached_snapshot, hub_trouble
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.self_check import check_parts

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DeviceMap = dict[int | str, int | str] | str | None
_SHOWN = 3  # tensors that an error names


class Source(NamedTuple):
    """Where a model is read from.

    Attributes:
        name: What the user called it.
        place: A hub id or a local folder.
        options: What every `from_pretrained` is given.
        dtype: Floating-point type that `auto` stands for.
        trouble: Why the hub could not be asked; None if it was, or need not be.
    """

    name: str
    place: str
    options: dict[str, Any]
    dtype: Dtype = "auto"
    trouble: str | None = None

    @property
    def gguf(self) -> str | None:
        """The GGUF file in the folder; None for a model of another kind."""
        file: str | None = self.options.get("gguf_file")
        return file


class OpenedModel(NamedTuple):
    """All of a model but its weights.

    Attributes:
        source: Where it is read from.
        config: Its configuration.
        tokenizer: Its tokenizer.
        architecture: The user's own description of its parts.
    """

    source: Source
    config: PretrainedConfig
    tokenizer: Any
    architecture: dict[str, Any] | None = None

    @property
    def n_layers(self) -> int:
        """How many decoder blocks it has."""
        return int(self.config.get_text_config().num_hidden_layers)


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


def open_model(
    name: str = EMBEDDED_MODEL,
    revision: str | None = None,
    trust_remote_code: bool = False,
    cache_dir: str | None = None,
    architecture: dict[str, Any] | None = None,
) -> OpenedModel:
    """Find a model, read its configuration and its tokenizer, and refuse one that cannot be edited.

    Args: as of `load_language_model`.

    Raises:
        UserError: Saying what the model is and what to do.
    """
    with _quiet():
        source = _find(name, revision, trust_remote_code, cache_dir)
        with _as_user_error(source):
            _check_adapter(source)
            if not source.gguf:
                raw, _ = PretrainedConfig.get_config_dict(source.place, **source.options)
                _check_kind(name, raw, trust_remote_code)
            config = AutoConfig.from_pretrained(source.place, **source.options)
            architecture_of(config.model_type, architecture)
        return OpenedModel(source, config, _load_tokenizer(source), architecture)


def _find(name: str, revision: str | None, trust_remote_code: bool, cache_dir: str | None) -> Source:
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if name == EMBEDDED_MODEL:
        return Source(name, str(embedded_model(cache_dir)), options)
    try:
        path = local_model(name)
        if path is None:
            trouble = hub_trouble(name)
            # With peft installed, transformers asks the hub for an adapter even if told not to: not of a folder.
            place = (trouble and cached_snapshot(name, revision)) or name
            options |= {"revision": revision, "local_files_only": bool(trouble)}
            return Source(name, place, options, trouble=trouble)
        gguf = gguf_of(path)
        if gguf is not None:
            return Source(name, str(gguf.absolute().parent), {**options, "gguf_file": gguf.name}, gguf_dtype(gguf))
        check_folder(path)
        return Source(name, str(path.absolute()), options)
    except OSError as error:
        raise UserError(f"The model {name!r} could not be read: {error}. Check its rights and its disk.") from error


def _check_adapter(source: Source) -> None:
    """Refuse an adapter on the hub, as `check_folder` does in a folder."""
    if source.place != source.name or source.gguf:
        return
    options = {key: value for key, value in source.options.items() if key != "trust_remote_code"}
    found = find_adapter_config_file(source.place, **options)
    if found:
        check_adapter(source.name, Path(found))


def _check_kind(name: str, config: dict[str, Any], trust_remote_code: bool) -> None:
    """Refuse models that write no text, are quantised or need code of their own, by their config.json."""
    model_type, classes = config.get("model_type", ""), [str(each) for each in config.get("architectures") or []]
    if config.get("is_encoder_decoder"):
        raise UserError(
            f"The model {name!r} ({model_type}) is an encoder-decoder. Facts are edited in decoders, such as "
            f"{', '.join(sorted(ARCHITECTURES))}: give --model.name one of these."
        )
    if model_type not in ARCHITECTURES and classes and not any(map(_writes_text, classes)):
        raise UserError(
            f"The model {name!r} is a {classes[0]} ({model_type}), which is no causal language model. Give "
            f"--model.name a decoder, such as {', '.join(sorted(ARCHITECTURES))}."
        )
    parts = (config, *(part for part in config.values() if isinstance(part, dict)))
    quantised = next((found for part in parts if (found := part.get("quantization_config"))), None)
    if quantised:
        kind = quantised.get("quant_method", "quantization_config")
        raise UserError(
            f"The model {name!r} is quantised ({kind}): its matrices are packed and cannot be edited. Give "
            "--model.name the unquantised model that it was made from."
        )
    if config.get("auto_map") and model_type not in CONFIG_MAPPING and not trust_remote_code:
        raise UserError(
            f"The model {name!r} brings code of its own, which would run on this machine. Read that code, and if you "
            "trust it, add --model.trust_remote_code=true."
        )


def _writes_text(architecture: str) -> bool:
    return architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))


def _load_tokenizer(source: Source) -> Any:
    """Load the tokenizer: of a GGUF file the one beside it, if there is one."""
    options = dict(source.options)
    if (Path(source.place) / "tokenizer.json").is_file():
        options.pop("gguf_file", None)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.place, **options)
    except Exception as error:  # each kind of file has a reader that raises what it likes
        raise UserError(
            f"The tokenizer of the model {source.name!r} could not be loaded: {_first_line(error)} A fast tokenizer is "
            "needed (tokenizer.json); tokenizer.model alone is converted if sentencepiece and protobuf are installed."
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise UserError(
            f"The tokenizer of the model {source.name!r} knows no words, so its files are missing. Put tokenizer.json "
            "of the model that it was made from there."
        )
    return tokenizer


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
    with _quiet(), _as_user_error(source, device_map):
        load: Any = AutoModelForCausalLM.from_pretrained  # typed as if it returned the model alone
        loaded: tuple[PreTrainedModel, dict[str, Any]] = load(
            source.place, dtype=dtype, output_loading_info=True, **source.options, **placing
        )
    model, info = loaded
    if source.gguf:
        _forget_quantisation(model, dtype)
    _check_complete(source.name, info)
    return _checked(source.name, model, opened.tokenizer, opened.architecture)


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
    _check_kind(name, model.config.to_dict(), trust_remote_code=True)
    lm = _checked(name, model, tokenizer, architecture)
    lm.stays = True
    return OpenedModel(Source(name, name, {}), model.config, tokenizer, architecture), lm


def _checked(name: str, model: PreTrainedModel, tokenizer: Any, architecture: dict[str, Any] | None) -> LanguageModel:
    """The language model of weights and a tokenizer that belong together, are whole, finite and at hand."""
    _check_vocabulary(name, model, tokenizer)
    _check_whole(model, architecture)
    _check_room(model)
    _check_finite(name, model)
    lm = LanguageModel(model, tokenizer, architecture)
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


def _check_whole(model: PreTrainedModel, architecture: dict[str, Any] | None) -> None:
    """Refuse blocks that are cut in pieces."""
    path = architecture_of(model.config.model_type, architecture).block
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


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, and no tables of tensors: what is wrong is said in one line of our own."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def _as_user_error(source: Source, device_map: DeviceMap = None) -> Iterator[None]:
    """Say in one line what a library could not load."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of six libraries, and of unpickling
        raise UserError(_not_loaded(source, error, device_map)) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else f"{type(error).__name__}."


def _not_loaded(source: Source, error: Exception, device_map: DeviceMap) -> str:
    name, reason = source.name, _first_line(error)
    if source.trouble:
        return (
            f"The model {name!r} is no local folder, not in the hub's cache, and {source.trouble}.{suggestion(name)} "
            f"Correct --model.name or the network, or leave it out to edit the embedded default ({EMBEDDED_MODEL})."
        )
    if device_map is not None:
        return (
            f"The model {name!r} could not be loaded under --model.device_map={device_map}: {reason} Give `auto`, how "
            'much each device may take ({"0": "20GiB", "1": "70GiB"}), or a device for every module; does it load '
            "without --model.device_map?"
        )
    if source.gguf:
        return (
            f"The GGUF file {name!r} could not be read: {reason} Give --model.name the transformers version of "
            "this model, with config.json and safetensors."
        )
    return (
        f"The model {name!r} could not be loaded: {reason}{suggestion(name)} "
        "Give --model.name a hub id that you can reach, or a local folder with config.json, the weights as safetensors "
        f"and tokenizer.json, or leave it out to edit the embedded default ({EMBEDDED_MODEL})."
    )
