"""From a name to a model that is opened: where it is, whether it can be edited, its configuration and tokenizer.

Weights are read in `sphere_pl.model.loading`; torch is imported only where a configuration or a tokenizer of a class of
its own needs it.
"""

import json
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging
from transformers.utils.peft_utils import find_adapter_config_file

from sphere_pl.errors import UserError
from sphere_pl.model.architectures import ARCHITECTURES, context_length, is_described
from sphere_pl.model.embedded import EMBEDDED_MODEL, embedded_model
from sphere_pl.model.files import check_adapter, check_folder, gguf_of, local_model, suggestion
from sphere_pl.model.gguf import gguf_dtype
from sphere_pl.model.hub import cached_snapshot, hub_trouble

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DeviceMap = dict[int | str, int | str] | str | None
_TOKENIZER_FILES = ("config.json", "tokenizer_config.json", "tokenizer.json")
_GENERAL = ("TokenizersBackend", "PreTrainedTokenizerFast")  # by the release of transformers
_OWN_TOKENIZERS = ("qwen", "gemma", "cohere", "gpt", "olmo", "phi", "starcoder")  # families


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


class OpenedTokenizer(NamedTuple):
    """A model's tokenizer, and what bounds a text.

    Attributes:
        name: What the user called the model.
        tokenizer: Its tokenizer.
        longest: How many tokens the model reads; None if that is not known.
    """

    name: str
    tokenizer: Any
    longest: int | None = None


class OpenedModel(NamedTuple):
    """All of a model but its weights.

    Attributes:
        source: Where it is read from.
        config: Its configuration.
        tokenizer: Its tokenizer.
        architecture: The user's own description of its parts.
    """

    source: Source
    config: "PretrainedConfig"
    tokenizer: Any
    architecture: dict[str, Any] | None = None

    @property
    def n_layers(self) -> int:
        """How many decoder blocks it has."""
        return int(self.config.get_text_config().num_hidden_layers)


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
    from transformers import AutoConfig, PretrainedConfig

    with quiet():
        source = _find(name, revision, trust_remote_code, cache_dir)
        with as_user_error(source):
            _check_adapter(source)
            if not source.gguf:
                raw, _ = PretrainedConfig.get_config_dict(source.place, **source.options)
                check_kind(name, raw, trust_remote_code)
            config = AutoConfig.from_pretrained(source.place, **source.options)
            is_described(config.model_type, architecture)  # what is wrong with a description shows here
        return OpenedModel(source, config, _load_tokenizer(source), architecture)


def open_tokenizer(
    name: str = EMBEDDED_MODEL,
    revision: str | None = None,
    trust_remote_code: bool = False,
    cache_dir: str | None = None,
    architecture: dict[str, Any] | None = None,
) -> OpenedTokenizer:
    """Open no more of a model than tells what its tokenizer makes of a text.

    A folder whose tokenizer is of transformers' general class is read without torch, in a fraction of the time.

    Args: as of `load_language_model`.

    Raises:
        UserError: As `open_model`.
    """
    with quiet():
        source = _find(name, revision, trust_remote_code, cache_dir)
        if not _is_general(source):
            opened = open_model(name, revision, trust_remote_code, cache_dir, architecture)
            return OpenedTokenizer(name, opened.tokenizer, _longest(opened.config.get_text_config().to_dict()))
        with as_user_error(source):
            config = _read_json(source, "config.json")
            check_kind(name, config, trust_remote_code)
            is_described(config["model_type"], architecture)
            tokenizer = PreTrainedTokenizerFast.from_pretrained(source.place)
            return OpenedTokenizer(name, tokenizer, _longest(_text_part(config)))


def _is_general(source: Source) -> bool:
    """Whether the tokenizer is of the class that makes of tokenizer.json what it says, whatever model it is of.

    Of families that have a class of their own, transformers may put that in its place.
    """
    if source.gguf or not all((Path(source.place) / file).is_file() for file in _TOKENIZER_FILES):
        return False
    config, tokenizer = (_read_json(source, file) for file in _TOKENIZER_FILES[:2])
    family = str(config.get("model_type"))
    own = family not in ARCHITECTURES or family.startswith(_OWN_TOKENIZERS) or "auto_map" in tokenizer
    return not own and tokenizer.get("tokenizer_class") in _GENERAL and _longest(_text_part(config)) is not None


def _read_json(source: Source, file: str) -> dict[str, Any]:
    try:
        found = json.loads((Path(source.place) / file).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # what is wrong with it is said where all is read
        return {}
    return found if isinstance(found, dict) else {}


def _text_part(config: dict[str, Any]) -> dict[str, Any]:
    """The entries that are about text, also of a model that sees."""
    return {**config, **(config.get("text_config") or {})}


def _longest(config: dict[str, Any]) -> int | None:
    """How many tokens the model reads, if its configuration says so."""
    return context_length(config.get)


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


def check_kind(name: str, config: dict[str, Any], trust_remote_code: bool) -> None:
    """Refuse models that write no text, are quantised or need code of their own, by their config.json.

    Raises:
        UserError: Saying which of these it is.
    """
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
    if config.get("auto_map") and model_type not in _known_types() and not trust_remote_code:
        raise UserError(
            f"The model {name!r} brings code of its own, which would run on this machine. Read that code, and if you "
            "trust it, add --model.trust_remote_code=true."
        )


def _known_types() -> Container[str]:
    """The families that transformers has code for."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING


def _writes_text(architecture: str) -> bool:
    if architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        return True
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as WRITING
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as SEEING

    return architecture in {*WRITING.values(), *SEEING.values()}


def _load_tokenizer(source: Source) -> Any:
    """Load the tokenizer: of a GGUF file the one beside it, if there is one."""
    from transformers import AutoTokenizer

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


@contextmanager
def quiet() -> Iterator[None]:
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
def as_user_error(
    source: Source, device_map: DeviceMap = None, passed: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Say in one line what a library could not load; errors that are `passed` on are said elsewhere."""
    try:
        yield
    except Exception as error:  # of six libraries, and of unpickling
        if isinstance(error, (UserError, MemoryError, *passed)):
            raise
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
