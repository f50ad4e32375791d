"""Finished scores, kept on disk so that an interrupted evaluation resumes where it was."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sphere_pl.abilities.evaluate import Score
from sphere_pl.errors import UserError
from sphere_pl.model.fingerprint import fingerprint
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.storage.files import expanded, write_text


class Journal:
    """Scores by what they were computed from: the weights, the task, its prompts and its items.

    A score is found again only if all of these are the same, so that a file left by another run does no harm.

    Args:
        path: The JSON file; nothing is kept if None.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else expanded(path)

    def find(self, key: str) -> Score | None:
        """The score kept under a key, if there is one."""
        kept = self._read().get(key)
        return None if kept is None else Score.from_json(kept)

    def keep(self, key: str, score: Score, **about: Any) -> None:
        """Write a score down.

        Args:
            key: What it was computed from.
            score: The score.
            **about: What a reader wants to know: the task, the number of edits.
        """
        if self.path is not None:
            entries = {**self._read(), key: {**about, **score.to_json()}}
            write_text(self.path, json.dumps(entries, indent=1) + "\n")

    def _read(self) -> dict[str, Any]:
        if self.path is None or not self.path.exists():
            return {}
        try:
            entries: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{self.path} is damaged ({error}). Delete it; its scores are computed again.") from error
        return entries


def weights_digest(lm: LanguageModel, edited: Sequence[Tensor] = ()) -> str:
    """A hash of a model's weights: samples of all of them, and every value of those that are edited.

    Args:
        lm: The language model.
        edited: The edited matrices; an edit may leave every sampled value as it was.
    """
    digest = hashlib.sha256(fingerprint(lm).encode())
    for weight in edited:
        digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
