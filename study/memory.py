"""The study's page on memory: a method with and without one of earlier keys, each with and without SPHERE."""

from collections.abc import Sequence
from typing import NamedTuple

from study.cells import MEMORY, PAIR
from study.claims import title
from study.runs import SCORES, Run, grouped, shares


class Quartet(NamedTuple):
    """Four runs that are alike but for a memory of earlier keys and SPHERE.

    Attributes:
        forgetful: The method, without SPHERE.
        sphere: It with SPHERE.
        remembering: It with a memory, without SPHERE.
        both: It with both.
    """

    forgetful: Run
    sphere: Run
    remembering: Run
    both: Run

    @property
    def edits(self) -> float:
        """The last edit count at which all four were scored."""
        return max(set.intersection(*({edits for edits, _ in run.series("val/efficacy")} for run in self)))

    def gain(self, run: Run, other: Run) -> float:
        """Difference of two runs' efficacies over all edits."""
        return (run.at("val/efficacy", self.edits) or 0.0) - (other.at("val/efficacy", self.edits) or 0.0)


def quartets(runs: Sequence[Run]) -> list[Quartet]:
    """All quartets that are complete."""
    found = []
    for members in grouped((run for run in runs if run.key.variant in PAIR), _likeness).values():
        by_kind = {(run.key.label.startswith(MEMORY), run.key.variant): run for run in members}
        if len(by_kind) == 2 * len(PAIR):
            found.append(Quartet(*(by_kind[remembers, variant] for remembers in (False, True) for variant in PAIR)))
    return found


def _likeness(run: Run) -> tuple[str, str, str, int]:
    label = run.key.label.removeprefix(MEMORY).removeprefix("-")
    return run.key.data, run.key.method, label, run.key.draw


def memory_section(runs: Sequence[Run]) -> list[str]:
    """A table of each quartet, and what it says."""
    lines = []
    for quartet in quartets(runs):
        lines += [
            "| run | edits | efficacy | generalization | agreement | change of the energy | share of the updates |",
            "|---|---|---|---|---|---|---|",
            *(_row(run, quartet.edits) for run in quartet),
            "",
            _in_words(quartet),
            "",
        ]
    head = (
        "AlphaEdit remembers the keys of earlier edits, and its updates keep out of the principal directions. Here the "
        "same memory is given to MEMIT (MEMIT-seq), all else being equal. The updates' share in the principal "
        "directions (η = 0.5) is that of the last ten batches, as a multiple of chance."
    )
    return ["### A memory of earlier keys", "", head, "", *lines] if lines else []


def _row(run: Run, edits: float) -> str:
    scores = [run.at(f"val/{name}", edits) for name in SCORES]
    cells = ["" if score is None else f"{score:.3f}" for score in scores]
    cells += [f"{run.at('energy/change', edits) or 0.0:+z.3%}", f"{latest_ratio(run, edits):.2f}"]
    return f"| {title(run)} | {edits:.0f} | {' | '.join(cells)} |"


def _in_words(quartet: Quartet) -> str:
    without, remembered = (latest_ratio(run, quartet.edits) for run in (quartet.forgetful, quartet.remembering))
    memory, sphere, more = (
        f"{100 * quartet.gain(run, other):+.1f} points"
        for run, other in (
            (quartet.remembering, quartet.forgetful),
            (quartet.sphere, quartet.forgetful),
            (quartet.both, quartet.remembering),
        )
    )
    return (
        f"The memory alone changes efficacy by {memory} and brings the updates from {without:.2f} to {remembered:.2f} "
        f"times chance; SPHERE alone changes it by {sphere}, and by {more} where there is a memory."
    )


def latest_ratio(run: Run, edits: float, batches: int = 10) -> float:
    """Mean share of the last updates up to `edits` in the principal directions at that time, over chance."""
    ratios = []
    for weight in shares(run):
        update, chance = (dict(run.series(f"shares/{kind}_0.5/{weight}")) for kind in ("update", "chance"))
        ratios += [update[when] / chance[when] for when in sorted(update) if when <= edits][-batches:]
    return sum(ratios) / len(ratios)
