"""Score a language model on general abilities."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from sphere_pl.abilities.answering import choice_log_likelihoods
from sphere_pl.abilities.metrics import METRICS, Estimate, estimate
from sphere_pl.abilities.sources import read_items
from sphere_pl.abilities.task import Item, Task, choose
from sphere_pl.abilities.tasks import TASKS
from sphere_pl.errors import UserError
from sphere_pl.model.generation import generate
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.progress import Track, untracked


class Score(NamedTuple):
    """What a model scores on a task.

    Attributes:
        metrics: Each metric with its standard error; the first is the task's score.
        items: How many items were scored.
    """

    metrics: dict[str, Estimate]
    items: int

    @property
    def metric(self) -> str:
        """Name of the task's score."""
        return next(iter(self.metrics))

    @property
    def value(self) -> float:
        """The task's score."""
        return self.metrics[self.metric].value

    @property
    def standard_error(self) -> float:
        """Its standard error."""
        return self.metrics[self.metric].standard_error

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return {"metrics": {name: list(found) for name, found in self.metrics.items()}, "items": self.items}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Score":
        """The score that `to_json` wrote."""
        return cls({name: Estimate(*found) for name, found in fields["metrics"].items()}, fields["items"])


class Given(NamedTuple):
    """What a model answered to an item.

    Attributes:
        label: Number of the answer, -1 if it could not be read.
        text: The choice taken, or the generated text.
    """

    label: int
    text: str


def task_named(name: str) -> Task:
    """The task of a name.

    Raises:
        UserError: If there is none.
    """
    if name not in TASKS:
        raise UserError(f"--abilities.tasks: {name!r} is unknown. Known: {', '.join(TASKS)}.")
    return TASKS[name]


def load_items(task: Task, data_dir: str | None, limit: int | None, seed: int | None) -> list[Item]:
    """The items of a task that are scored; see `choose`.

    Raises:
        UserError: If its data cannot be read, or hold none.
    """
    items = choose(read_items(task, data_dir), limit, seed)
    if not items:
        raise UserError(
            f"The task {task.name!r} has no items in {data_dir or task.sources[0].hub!r}. Fetch its data again, or "
            "leave it out of --abilities.tasks."
        )
    return items


def answer_items(
    lm: LanguageModel, task: Task, items: Sequence[Item], max_tokens: int = 8192, track: Track = untracked
) -> list[Given]:
    """Let the model answer items: the likeliest choice (the first of equals), or a text that the task judges."""
    if task.judge is None:
        likelihoods = choice_log_likelihoods(lm, items, max_tokens, track, task.name)
        best = [each.index(max(each)) for each in likelihoods]
        return [Given(place, item.choices[place]) for place, item in zip(best, items, strict=True)]
    prompts = [item.shots + item.prompt for item in items]
    texts = generate(lm, prompts, task.new_tokens, task.stop, max_tokens, track, task.name)
    return [Given(task.judge(text, item), text) for text, item in zip(texts, items, strict=True)]


def score(task: Task, items: Sequence[Item], given: Sequence[Given]) -> Score:
    """Compare answers with the right ones."""
    predicted, label = torch.tensor([each.label for each in given]), torch.tensor([item.label for item in items])
    return Score({name: estimate(METRICS[name], predicted, label) for name in task.metrics}, len(items))


def evaluate(
    lm: LanguageModel, task: Task, items: Sequence[Item], max_tokens: int = 8192, track: Track = untracked
) -> Score:
    """Score a language model on a task.

    Args:
        lm: The language model.
        task: The task.
        items: Some of its items.
        max_tokens: Tokens in one forward pass.
        track: Shows progress.
    """
    return score(task, items, answer_items(lm, task, items, max_tokens, track))


def fingerprint_of(task: Task, items: Sequence[Item]) -> str:
    """A hash of everything that a score depends on beside the model."""
    about = [task.name, task.metrics, task.new_tokens, task.stop, [list(item) for item in items]]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()
