"""What is measured while a model is edited, and Lightning's hooks of a validation, batch after batch."""

from collections.abc import Iterator

from torch.utils.data import DataLoader

from sphere_pl.data.request import EditBatch
from sphere_pl.editing.edited_module import EditedModule
from sphere_pl.evaluation.evaluator import Evaluator
from sphere_pl.evaluation.run_scores import RunScores
from sphere_pl.evaluation.sample import ScoredEdits, ScoringBatch
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.progress import track
from sphere_pl.trainers import is_last_step


class ScoredModule(EditedModule):
    """A module whose language model is scored while it is edited.

    Args:
        evaluation: What is measured.

    Attributes:
        evaluator: Measures.
        scores: What was measured.
        batch_start: Edits before the batch edited last.
        edits_seen: Edits so far.
    """

    def __init__(self, evaluation: EvaluationSettings) -> None:
        super().__init__()
        self.measure(evaluation)
        self.batch_start = self.edits_seen = 0

    def measure(self, evaluation: EvaluationSettings) -> None:
        """Say before the fit what is measured, in place of what the settings say."""
        self.evaluation, self.evaluator = evaluation, Evaluator(evaluation)
        self.scores = RunScores(self.evaluator)

    def failing(self) -> list[int]:
        """Places of the edits so far that the model does not answer as wanted."""
        return self.scores.failing(self.language_model, self.edits_seen)

    def on_train_batch_start(self, batch: EditBatch, batch_idx: int) -> None:
        """Make sure that the run ends with a validation, whatever `val_check_interval` is."""
        last_step = self.trainer.max_steps == self.trainer.global_step + 1
        if (self.trainer.is_last_batch or last_step) and isinstance(self.trainer.val_check_batch, int):
            self.trainer.val_check_batch = batch_idx + 1

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
