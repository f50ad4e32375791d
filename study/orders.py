"""Two methods over several orders of the facts: which facts come, and when, is no difference of methods."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from study.comparison import MODELS, Result, lengths
from study.paired import Exchanged, Paired, paired
from study.runs import grouped
from study.tables import CLEAR, apart

KINDS = (("written", "holds"), ("written_paraphrase", "in other words"), ("neighbor", "others as before"))


class Orders(NamedTuple):
    """Two methods, order by order.

    Attributes:
        first: A method's results, one an order.
        second: Another's, in the same orders.
    """

    first: list[Result]
    second: list[Result]

    def each(self, kind: str) -> list[float]:
        """The second's share minus the first's in each order."""
        pairs = zip(self.first, self.second, strict=True)
        return [second.share(kind).value - first.share(kind).value for first, second in pairs]

    def over(self, kind: str) -> Paired:
        """Mean of these differences, with the error that the orders show."""
        return paired(*([each.share(kind).value for each in some] for some in (self.first, self.second)))

    def pooled(self, kind: str) -> Exchanged:
        """Fact by fact over all orders together: what was gained and lost adds up, each within its order."""
        pairs = zip(self.first, self.second, strict=True)
        found = [pair for first, second in pairs if (pair := second.against(first, kind)) is not None]
        return Exchanged(*(sum(column) for column in zip(*found, strict=True)))


def orders_of(results: Sequence[Result], first: str, second: str) -> list[Orders]:
    """Two methods without SPHERE wherever both were run to their end in the same two or more orders."""
    found = []
    for alike in grouped(results, lambda each: (each.key.model, each.key.batch_size, each.key.edits)).values():
        runs = {method: {each.key.draw: each for each in alike if _is(each, method)} for method in (first, second)}
        shared = sorted({*runs[first]} & {*runs[second]})
        if len(shared) > 1:
            found.append(Orders(*([runs[method][draw] for draw in shared] for method in (first, second))))
    return found


def _is(each: Result, method: str) -> bool:
    return (each.key.method, each.key.variant) == (method, "plain") and not each.broke


def orders_table(found: Sequence[Orders]) -> list[str]:
    """A line for each question: the difference in each order, its mean with the orders' error, all facts together."""
    lines = [
        "| model | edits | | asked | order by order | mean over orders | all facts, paired |",
        "|---|---|---|---|---|---|---|",
    ]
    for orders in found:
        first, second = orders.first[0], orders.second[0]
        about = f"| {MODELS[first.key.model]} | {first.key.edits} | {second.name} minus {first.name}"
        lines += [f"{about} | {words} | {_row(orders, kind)} |" for kind, words in KINDS]
    return lines if found else []


def _row(orders: Orders, kind: str) -> str:
    over = orders.over(kind)
    error = "" if math.isnan(over.error) else f" ± {over.error:.3f}"
    each = ", ".join(f"{value:+.3f}" for value in orders.each(kind))
    # Orders that happen to agree have an error of 0; the exact test knows how few they are.
    return f"{each} | {over.difference:+.3f}{error}, p {over.p_value:.2f} | {apart(orders.pooled(kind))}"


def orders_words(results: Sequence[Result], found: Sequence[Orders]) -> str:
    """How many orders there are, and what they tell apart."""
    if not found:
        return "One order of the facts was run: what differs from order to order is in no interval here."
    most = max(len(orders.first) for orders in found)
    clear = [words for orders in found for kind, words in KINDS if orders.pooled(kind).p_value < CLEAR]
    told = f"told apart fact by fact: {', '.join(clear)}" if clear else "none is told apart fact by fact"
    comparisons = f"{len(found)} comparison{'s' * (len(found) > 1)}"
    return (
        f"Of {comparisons} up to {most} orders of the facts were run; of the differences, {told}; {most} orders alone "
        f"tell nothing apart below p {2.0 ** (1 - most):g}. All else, the {lengths(results)[-1]:,} edits among it, was "
        "run in one order: what differs from order to order is in no interval there."
    )
