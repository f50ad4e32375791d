"""What the unedited model says, kept from run to run: the same facts are often edited again with other settings.

A file is addressed by all that its answers come from: the weights, the configuration, the tokenizer, the facts as they
are asked, what is measured, the program's code, the kind of device.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sphere_pl.data.chat import ChatSettings
from sphere_pl.data.request import EditRequest
from sphere_pl.errors import UserError
from sphere_pl.evaluation.evaluator import Unedited
from sphere_pl.evaluation.made_neighbors import MadeNeighbor
from sphere_pl.evaluation.scored import from_plain, to_plain
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.model.embedded import cache_folder
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.storage.addresses import address_of, digest_of_sources
from sphere_pl.storage.files import expanded, write_text

log = logging.getLogger(__name__)
_PROGRAM = Path(__file__).parents[1]  # all of it: any part may change an answer
Measured = tuple[Unedited, dict[int, list[MadeNeighbor]]]


def unedited_file(
    lm: LanguageModel,
    model_hash: str,
    requests: Sequence[EditRequest],
    inherited: int,
    settings: EvaluationSettings,
    chat: ChatSettings,
    cache_dir: str | None,
) -> Path:
    """Where the answers of an unedited model are kept.

    Args:
        lm: The unedited language model.
        model_hash: Its fingerprint.
        requests: What it is asked for.
        inherited: How many of them, the first, an earlier run has edited.
        settings: What is measured.
        chat: In which form.
        cache_dir: The folder of caches; the user's if None.
    """
    config = lm.model.config.to_dict()
    about = {
        "model": model_hash,
        "config": {name: value for name, value in config.items() if name != "_name_or_path"},
        "attention": lm.model.config._attn_implementation,
        "ends": lm.model.generation_config.to_dict() if lm.model.generation_config else None,
        "tokenizer": _hash_of_tokenizer(lm.tokenizer),
        "requests": [repr(request._replace(source="")) for request in requests],
        "inherited": inherited,
        "settings": asdict(settings),
        "texts": [_content(path) for path in (settings.text, settings.references)],
        "chat": list(chat),
        "code": digest_of_sources(_PROGRAM),
        "device": lm.device.type,
        "torch": torch.__version__,
    }
    return cache_folder(cache_dir) / "unedited" / f"{address_of(about)}.json"


def read_measured(path: Path) -> Measured | None:
    """What is kept in a file; None if there is none, or if it holds something else, which is said."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        neighbors = {int(place): answers for place, answers in kept["neighbors"].items()}
        made = {int(place): [MadeNeighbor(*each) for each in some] for place, some in kept["made"].items()}
        opening = kept["opening"]
        return Unedited(from_plain(kept["scores"]), neighbors, kept["cases"], kept["facts"], opening), made
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("What was kept in %s cannot be used (%s); the unedited model is asked again.", path, error)
        return None


def keep_measured(measured: Measured, path: Path) -> None:
    """Keep what the unedited model says; a cache that cannot be written is said and changes nothing."""
    unedited, made = measured
    kept: dict[str, Any] = {**unedited._asdict(), "scores": to_plain(unedited.scores), "made": made}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(kept))
    except (OSError, UserError) as error:
        log.warning("What the unedited model says could not be kept in %s (%s): it is asked again.", path, error)


def _hash_of_tokenizer(tokenizer: Any) -> str:
    rest = (type(tokenizer).__name__, tokenizer.chat_template, tokenizer.special_tokens_map)
    return hashlib.sha256(f"{rest}{tokenizer.backend_tokenizer.to_str()}".encode()).hexdigest()


def _content(path: str | None) -> str | None:
    """The hash of a file, or the name of what is none."""
    file = None if path is None else expanded(path)
    return path if file is None or not file.is_file() else hashlib.sha256(file.read_bytes()).hexdigest()
