"""What a general-ability task is: where its data lies, what is asked, how an answer is judged."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sphere_pl.data.records import Record

INVALID = -1


class Item(NamedTuple):
    """One question.

    Attributes:
        prompt: Everything before the answer.
        label: Number of the right choice; 1 for a question that is answered freely.
        choices: Continuations whose likelihoods are compared; none if the question is answered freely.
        answers: What counts as a right free answer.
        shots: Worked examples that stand before the prompt and that many items share.
    """

    prompt: str
    label: int
    choices: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    shots: str = ""


@dataclass(frozen=True)
class Source:
    """One table of a task's data.

    Args:
        files: Where it may lie in the user's folder: alternatives, each one or more patterns that must all be there.
        hub: Id of the hub data set.
        config: Its configuration.
        split: Its split.
        address: Where the files are to be had.
        columns: Names of the columns of files that may come without a header.
    """

    files: tuple[tuple[str, ...], ...]
    hub: str
    config: str | None
    split: str
    address: str
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """A general ability and one way to measure it.

    Args:
        name: Name on the command line, in the logs and in results.json.
        variant: `clean`, or `paper` for the prompt and the score of the authors' code.
        sources: Its data.
        read: Makes items of the records of each source.
        metrics: Names in `metrics.METRICS`; the first is the task's score.
        chance: What guessing scores on the first metric.
        judge: For free answers: from a generated text and its item to a label, `INVALID` if the text is no answer. The
            likeliest choice is taken where there is none.
        new_tokens: Most tokens of a free answer.
        stop: Texts that end a free answer.
    """

    name: str
    variant: Literal["clean", "paper"]
    sources: tuple[Source, ...]
    read: Callable[..., Iterator[Item]]
    metrics: tuple[str, ...]
    chance: float
    judge: Callable[[str, Item], int] | None = None
    new_tokens: int = 0
    stop: tuple[str, ...] = ()


def choose(items: Iterable[Item], limit: int | None, seed: int | None) -> list[Item]:
    """Take some items: a random choice in the data's order, or the first ones without a seed.

    Example:
        >>> items = [Item(str(number), 0) for number in range(100)]
        >>> [item.prompt for item in choose(items, 3, seed=0)] == [item.prompt for item in choose(items, 3, seed=0)]
        True
        >>> [item.prompt for item in choose(items, 3, seed=None)]
        ['0', '1', '2']
    """
    everything = list(items)
    if limit is None or limit >= len(everything):
        return everything
    if seed is None:
        return everything[:limit]
    chosen = random.Random(seed).sample(range(len(everything)), limit)  # noqa: S311
    return [everything[place] for place in sorted(chosen)]


def label_of(record: Record, name: str, labels: Sequence[str]) -> int:
    """The number of a record's label, given as that number or as its name.

    Args:
        record: The record.
        name: The field.
        labels: The names of labels 0, 1 and so on.

    Raises:
        UserError: If it is neither, such as the -1 that stands for an unpublished label.

    Example:
        >>> label_of(Record("a file, line 1", 0, {"label": "entailment"}), "label", ["entailment", "not_entailment"])
        0
    """
    value = record.get(name, (str, int))
    text = str(int(value)) if isinstance(value, bool) else str(value).strip()
    if text in labels:
        return list(labels).index(text)
    if text in {str(number) for number in range(len(labels))}:
        return int(text)
    raise record.error(
        f"the field '{name}' is {text!r}, expected {' or '.join(labels)} or a number from 0 to {len(labels) - 1}. "
        "Splits without published labels cannot be scored."
    )
