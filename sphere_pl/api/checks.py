"""What `sphere_pl.edit` refuses of a model that it is given, each in one line with what to do instead."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sphere_pl.errors import UserError
from sphere_pl.methods import Method

# What a model that is held has settled.
_OF_THE_MODEL = (
    "model.dtype", "model.revision", "model.trust_remote_code", "model.device_map", "model.cache_dir",
    "trainer.accelerator",
)  # fmt: skip


def check_named(model: str | Path, tokenizer: object) -> None:
    """Refuse a tokenizer beside a model's name.

    Raises:
        UserError: If there is one.
    """
    if isinstance(tokenizer, list | tuple):
        raise UserError(f"The facts are given as the tokenizer. Write edit({str(model)!r}, facts=[...]).")
    if tokenizer is not None:
        raise UserError(
            f"The model {str(model)!r} brings its own tokenizer. Leave `tokenizer` out, or give the loaded model."
        )


def check_held(model: object, tokenizer: object, settings: Mapping[str, Any] | None) -> None:
    """Refuse what is no language model in memory with its tokenizer, ready to be edited.

    Raises:
        UserError: Naming what is wrong.
    """
    if not isinstance(model, PreTrainedModel):
        raise UserError(f"`model` is {type(model).__name__}: {_instead(model)}")
    _check_tokenizer(model, tokenizer)
    _check_plain(model)
    settled = next((name for name in settings or {} if name.startswith(_OF_THE_MODEL)), None)
    if settled:
        raise UserError(f"`settings` may not hold {settled!r}: the model that is given has settled it.")


def check_edits_weights(method: Method) -> None:
    """Refuse a method that would leave the model as it is.

    Raises:
        UserError: If the method keeps its facts in a list.
    """
    if method.retrieval is not None:
        raise UserError(
            f"{method.name} edits no weight: the model that `edit` returns would be the unedited one. Take a method "
            "that edits, or `python -m sphere_pl fit --config method/scr` and ask its run with `predict` or `serve`."
        )


def held_name(model: PreTrainedModel) -> str:
    """What messages and results call a model: where it was loaded from, else its class."""
    return str(getattr(model.config, "_name_or_path", "") or type(model).__name__)


def _instead(model: object) -> str:
    """What to give instead of an object that is no transformers model."""
    if hasattr(model, "merge_and_unload"):
        return "an adapter around a model. Give `model.merge_and_unload()`, which is edited then."
    if hasattr(model, "_orig_mod"):
        return "a compiled model. Give the one inside, `model._orig_mod`; the compiled one sees its edits."
    if hasattr(model, "module"):
        return "a wrapper. Give the model inside, `model.module`."
    return "expected a transformers model (AutoModelForCausalLM) or the name of one."


def _check_tokenizer(model: PreTrainedModel, tokenizer: object) -> None:
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return
    if tokenizer is None:
        # Not loaded from there: tokens may have been added, and a wrong tokenizer edits wrongly without a word.
        raise UserError(
            "A model that is given as an object needs its tokenizer. Write edit(model, tokenizer, facts) with "
            f"tokenizer = AutoTokenizer.from_pretrained({held_name(model)!r})."
        )
    if isinstance(tokenizer, list | tuple):
        raise UserError("The facts are given as the tokenizer. Write edit(model, tokenizer, facts).")
    raise UserError(f"`tokenizer` is {type(tokenizer).__name__}, expected the model's transformers tokenizer.")


def _check_plain(model: PreTrainedModel) -> None:
    """Refuse a model in a state that edits would not fit."""
    if getattr(model, "_hf_peft_config_loaded", False) or getattr(model, "peft_config", None):
        raise UserError(
            "The model carries adapters, which would add to the edited matrices. Merge or delete them first."
        )
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise UserError("The model was made inside `torch.inference_mode()` and cannot be changed. Load it outside.")
    dropout = _dropout(model) if model.training else None
    if dropout:
        raise UserError(f"The model is in training mode and has dropout ({dropout}). Call `model.eval()` first.")


def _dropout(model: PreTrainedModel) -> str | None:
    """A dropout that training would apply: a module's, or one that the attention takes from the configuration."""
    for name, module in model.named_modules():
        if isinstance(module, _DropoutNd) and module.p > 0:
            return str(name)
    for name, value in model.config.get_text_config().to_dict().items():
        if name.endswith(("dropout", "pdrop")) and isinstance(value, int | float) and value > 0:
            return str(name)
    return None
