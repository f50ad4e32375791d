"""Lightning's hooks of a validation: the edits so far are scored, batch after batch."""

from collections.abc import Iterator

from torch.utils.data import DataLoader

from sphere_pl.editing.edited_module import EditedModule
from sphere_pl.evaluation.evaluator import Evaluator
from sphere_pl.evaluation.run_scores import RunScores
from sphere_pl.evaluation.sample import ScoredEdits, ScoringBatch
from sphere_pl.progress import track
from sphere_pl.trainers import is_last_step


class ScoredModule(EditedModule):
    """A module whose language model is scored while it is edited.

    Attributes:
        evaluator: Measures.
        scores: What was measured.
        batch_start: Edits before the batch edited last.
        edits_seen: Edits so far.
    """

    evaluator: Evaluator
    scores: RunScores
    batch_start: int
    edits_seen: int

    def val_dataloader(self) -> DataLoader[ScoringBatch]:
        """The edits so far."""
        return DataLoader(ScoredEdits(self.begin_validation), batch_size=None)

    def begin_validation(self) -> Iterator[ScoringBatch]:
        """Say what is scored now; Lightning asks for the first batch before any hook of the validation."""
        self.evaluator.begin(self.edits_seen, self.batch_start, is_last_step(self.trainer))
        return self.evaluator.batches()

    def on_validation_epoch_start(self) -> None:
        """Let the language model follow the weights: a callback may have swapped them."""
        self.refresh_model()

    def validation_step(self, batch: ScoringBatch, batch_idx: int) -> None:
        """Score some edited requests."""
        self.scores.add(self.language_model, batch)

    def on_validation_epoch_end(self) -> None:
        """Log what was measured and go back to the weights being edited."""
        scalars = self.scores.end_validation(self.language_model, track(self.trainer))
        self.log_dict({**scalars, "edits": float(self.edits_seen)}, batch_size=1)
        self.refresh_model()

    def on_validation_end(self) -> None:
        """Follow a callback that moved the weights after a validation."""
        self.refresh_model()
