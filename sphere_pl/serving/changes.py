"""What comes of an edit or an undo by hand: answers around it, and how far the model is from the unedited one."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor

from sphere_callbacks.functional import hyperspherical_energy
from sphere_pl.serving.facts import Reading


class Answer(NamedTuple):
    """A prompt's answers around an edit.

    Attributes:
        kind: `fact`, `paraphrase` or `neighbor`.
        prompt: The prompt.
        unedited: What the model said before all edits.
        before: Before this one.
        after: After it.
    """

    kind: str
    prompt: str
    unedited: str
    before: str
    after: str


class Geometry(NamedTuple):
    """How far the edited matrices are from the unedited ones.

    Attributes:
        energy: Relative change of their hyperspherical energy, mean over the matrices.
        norm: Norm of the change of all edits, as a share of the unedited matrices'.
    """

    energy: float = 0.0
    norm: float = 0.0


class Edited(NamedTuple):
    """What came of an edit.

    Attributes:
        case_id: What the edit is called from here on.
        learned: Whether the answer begins with the fact's.
        reading: How the fact was read.
        answers: Those of the fact, its paraphrases and neighbours.
        geometry: How far the edited matrices are from the unedited ones now.
        seconds: How long it took.
    """

    case_id: str
    learned: bool
    reading: Reading
    answers: list[Answer]
    geometry: Geometry
    seconds: float


class TakenBack(NamedTuple):
    """What came of an undo.

    Attributes:
        case_id: The edit.
        prompt: Its question.
        unedited: What the unedited model says to it.
        before: What the model said with the edit.
        after: What it says now.
        exact: Whether the model is that of a run that had never seen the edit.
        geometry: How far the edited matrices are from the unedited ones now.
    """

    case_id: str
    prompt: str
    unedited: str
    before: str
    after: str
    exact: bool
    geometry: Geometry


def geometry_of(unedited: Mapping[str, Tensor], edited: Mapping[str, Tensor]) -> Geometry:
    """How far edited matrices are from the unedited ones, both float32 `[d_out, d_in]`, by name."""
    changes = [edited[name] - weight for name, weight in unedited.items()]
    before = [float(hyperspherical_energy(weight)) for weight in unedited.values()]
    after = [float(hyperspherical_energy(edited[name])) for name in unedited]
    norm = _norm(changes) / _norm(list(unedited.values()))
    return Geometry(mean((now - was) / abs(was) for was, now in zip(before, after, strict=True)), norm)


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.hypot(*(float(torch.linalg.matrix_norm(each.double())) for each in tensors))
