"""What changes while a run edits: a checkpoint holds it, and a run that continues an earlier one takes it over."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sphere_pl.data.request import EditRequest
from sphere_pl.editing.guard import Guard
from sphere_pl.editing.states import MethodStates
from sphere_pl.errors import UserError
from sphere_pl.evaluation.run_scores import RunScores
from sphere_pl.history.continuation import Earlier
from sphere_pl.history.fingerprints import check_model, request_hashes
from sphere_pl.methods.base import Method
from sphere_pl.storage.random_states import random_states, restore_random_states


class RunState(NamedTuple):
    """The parts of a run that editing changes, each of them in place.

    Attributes:
        matrices: The edited matrices by name, float32 `[d_out, d_in]`.
        method: The method.
        states: What it remembers of each matrix.
        guard: What it has refused so far.
        scores: What has been measured so far.
    """

    matrices: dict[str, Tensor]
    method: Method
    states: MethodStates
    guard: Guard
    scores: RunScores

    def saved(self, settled: Mapping[str, Any], requests: Sequence[EditRequest]) -> dict[str, Any]:
        """The entries of a checkpoint.

        Args:
            settled: Plain values and tensors of the run's own.
            requests: What the run edits: only a run of the same is resumed.
        """
        own = {
            **settled,
            "scores": self.scores.state_dict(),
            "states": self.states.saved(self.method.saved),
            "guard": self.guard.state_dict(),
            "requests": request_hashes(requests),
            "random": random_states(),
        }
        return {"state_dict": self.matrices, "sphere_pl": own}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Go back to where a checkpoint was written; see `taken_from`."""
        self._put_back(kept["weights"])
        self.states.restore(kept["states"])
        self.guard.load_state_dict(kept["guard"])
        self.scores.load_state_dict(kept["scores"])
        restore_random_states(kept["random"])

    def take_over(self, earlier: Earlier) -> None:
        """Turn the unedited matrices into those that an earlier run has left, with the memory of its keys.

        Raises:
            UserError: If the method remembers what the earlier run does not hold.
        """
        self._put_back(earlier.live_weights(self.matrices))
        earlier.restore_memory(self.method, self.states, list(self.matrices.values()))
        if "random" in earlier.kept:
            restore_random_states(earlier.kept["random"])

    @torch.no_grad()
    def _put_back(self, values: Mapping[str, Tensor]) -> None:
        for name, matrix in self.matrices.items():
            matrix.copy_(values[name])


def taken_from(checkpoint: dict[str, Any], model_hash: str, name: str) -> dict[str, Any]:
    """Take out of a checkpoint what a run is restored from; the matrices, as `weights`, are no state dict any more.

    Args:
        checkpoint: As Lightning has read it.
        model_hash: Fingerprint of the unedited model at hand.
        name: Its name.

    Raises:
        UserError: If it is no checkpoint of an editing run, or one of another model.
    """
    if "sphere_pl" not in checkpoint:
        raise UserError(
            "The checkpoint was not written by an editing run: it holds no `sphere_pl` entry. Give one that "
            "`python -m sphere_pl fit` wrote."
        )
    own = checkpoint["sphere_pl"]
    check_model(own["model_hash"], model_hash, name)
    matrices, checkpoint["state_dict"] = checkpoint["state_dict"], {}
    checkpoint.pop("spectrum_restraint", None)  # PRUNE would write it now, and the run prepares on unedited matrices
    return {**own, "weights": matrices}
