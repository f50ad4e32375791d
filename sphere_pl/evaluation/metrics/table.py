"""Every metric and every protocol, one row each: what reports, results, loggers and the dashboard know of them.

Nothing heavy is imported: pages are written without torch. How a metric is counted stands in its own module.
"""

from dataclasses import dataclass
from typing import Literal

Color = Literal["blue", "vermillion", "green", "purple", "orange", "sky"]  # the palette of `sphere_pl.report.style`


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What is said of a metric, and how it is drawn.

    Attributes:
        name: As in results.json; metrics.csv has it as `val/<name>`.
        label: What figures and tables call it.
        title: What the terminal calls it, which has room for more words.
        meaning: What it counts, in half a sentence.
        scope: What it is measured on, for a report whose run has not finished.
        first_rank: Whether it has a column of every table and a curve in the main figures. Others are shown where
            they were measured.
        is_share: Whether it lies between 0 and 1 and is shown in per cent.
        higher_is_better: Whether more of it is better.
        is_relative: Whether its change is given in per cent of what it was; a share's never is.
        by_age: Whether a validation logs it for early, middle and late edits too.
        color: Its colour in every figure.
        symbol: Its marker, in plotly's words.
    """

    name: str
    label: str
    title: str
    meaning: str
    scope: str = "on all edits so far"
    first_rank: bool = False
    is_share: bool = True
    higher_is_better: bool = True
    is_relative: bool = False
    by_age: bool = False
    color: Color = "blue"
    symbol: str = "circle"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A way of asking whether an edit holds.

    Attributes:
        name: As in `--model.evaluation.protocols`.
        label: What figures call it.
        prefix: What stands before a metric's name where this protocol measured it.
        suffix: What the terminal adds to the metric's title.
        meaning: How it asks, in half a sentence.
        metrics: Which metrics it measures.
        color: Its colour in the figures that compare protocols.
        dash: Its line there.
        symbol: Its marker there.
    """

    name: str
    label: str
    prefix: str
    suffix: str
    meaning: str = ""
    metrics: tuple[str, ...]
    color: Color
    dash: str
    symbol: str


METRICS = (
    Metric(
        name="efficacy",
        label="efficacy",
        title="efficacy",
        meaning="edited prompts that now give the new answer",
        first_rank=True,
        by_age=True,
        color="blue",
        symbol="circle",
    ),
    Metric(
        name="generalization",
        label="generalization",
        title="generalization",
        meaning="paraphrases of them that do",
        first_rank=True,
        by_age=True,
        color="vermillion",
        symbol="diamond",
    ),
    Metric(
        name="specificity",
        label="specificity",
        title="specificity",
        meaning="neighbouring facts still answered truthfully",
        first_rank=True,
        color="green",
        symbol="square",
    ),
    Metric(
        name="neighborhood_agreement",
        label="agreement",
        title="neighborhood agreement",
        meaning="neighbouring prompts answered as the unedited model did",
        first_rank=True,
        color="purple",
        symbol="triangle-up",
    ),
    Metric(
        name="perplexity",
        label="perplexity",
        title="perplexity (held-out text)",
        meaning="on text that no edit is about; lower is better",
        scope="on other text",
        first_rank=True,
        is_share=False,
        higher_is_better=False,
        is_relative=True,
        color="orange",
        symbol="x",
    ),
    Metric(name="portability", label="portability", title="portability", meaning=""),
    Metric(name="fluency", label="fluency", title="fluency", meaning="", is_share=False),
    Metric(name="consistency", label="consistency", title="consistency", meaning=""),
)

PROTOCOLS = (
    Protocol(
        name="teacher_forced",
        label="teacher-forced",
        prefix="",
        suffix="",
        meaning="the right tokens so far are shown",
        metrics=("efficacy", "generalization", "specificity", "portability"),
        color="blue",
        dash="solid",
        symbol="circle",
    ),
    Protocol(
        name="probability",
        label="probability",
        prefix="probability/",
        suffix=", by probability",
        meaning="the wanted answer is likelier than the other one",
        metrics=("efficacy", "generalization", "specificity"),
        color="green",
        dash="dash",
        symbol="diamond",
    ),
    Protocol(
        name="generation",
        label="generation",
        prefix="generation/",
        suffix=", freely written",
        meaning="what the model writes begins with the wanted answer",
        metrics=("efficacy", "generalization", "specificity", "portability"),
        color="vermillion",
        dash="dot",
        symbol="square",
    ),
    Protocol(
        name="chat",
        label="in chat form",
        prefix="chat/",
        suffix=", in chat form",
        meaning="asked as the user's turn of the model's own template",
        metrics=("efficacy", "generalization", "specificity"),
        color="purple",
        dash="dashdot",
        symbol="triangle-up",
    ),
    Protocol(
        name="long_prefix",
        label="after a long text",
        prefix="long_prefix/",
        suffix=", after a long text",
        meaning="50 tokens on something else stand before the question",
        metrics=("efficacy", "generalization"),
        color="orange",
        dash="longdash",
        symbol="x",
    ),
)

FIRST_RANK = tuple(metric.name for metric in METRICS if metric.first_rank)
ACCURACIES = tuple(metric.name for metric in METRICS if metric.first_rank and metric.is_share)
FURTHER = tuple(metric.name for metric in METRICS if not metric.first_rank)
BY_AGE = tuple(metric.name for metric in METRICS if metric.by_age)
_ROWS = {metric.name: metric for metric in METRICS}


def metric_of(column: str) -> Metric | None:
    """The row of a metric, whichever protocol, age or batch it was measured by; None for what is no metric.

    Example:
        >>> metric_of("retention/earliest/efficacy").name, metric_of("val/perplexity").name, metric_of("energy/mean")
        ('efficacy', 'perplexity', None)
    """
    return _ROWS.get(column.rpartition("/")[2])


def is_share(column: str) -> bool:
    """Whether a column lies between 0 and 1 and is shown in per cent.

    Example:
        >>> is_share("retention/earliest/efficacy"), is_share("val/perplexity"), is_share("abilities/sst2")
        (True, False, True)
    """
    row = metric_of(column)
    return column.startswith("abilities/") or (row is not None and row.is_share)


def titles() -> dict[str, str]:
    """What the terminal calls every score that a run may have, in the order in which it shows them.

    Accuracies come first, then the other protocols, what else was measured, and perplexity last.

    Example:
        >>> list(titles().values())[3:5]
        ['neighborhood agreement', 'efficacy, by probability']
    """
    own = {row.name: row.title for row in METRICS}
    others = {
        protocol.prefix + name: own[name] + protocol.suffix
        for protocol in PROTOCOLS
        if protocol.prefix
        for name in protocol.metrics
    }
    order = (*ACCURACIES, *others, *FURTHER, *FIRST_RANK)
    return {name: (own | others)[name] for name in dict.fromkeys(order)}
