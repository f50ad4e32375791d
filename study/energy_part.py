"""Energy's part: does the projection help a method that remembers the keys of its edits, anywhere that was looked?"""

from collections.abc import Sequence

from study.cells import MEMORY
from study.chart import Effect
from study.comparison import MODELS, REMEMBERING, Result, sphere_pairs
from study.runs import Run, grouped, kind, pairs, pooled


def effects(results: Sequence[Result], runs: Sequence[Run]) -> list[Effect]:
    """What SPHERE changes of the facts that hold: the new pairs fact by fact, the earlier ones pooled over draws.

    Args:
        results: Those of the comparison over models.
        runs: Those of the earlier study on the default model, efficacy teacher-forced.
    """
    new = [
        Effect(
            f"{plain.name}, {MODELS[plain.key.model]}, {plain.key.edits}",
            found.difference,
            plain.key.method in REMEMBERING,
        )
        for plain, sphere in sphere_pairs(results)
        if (found := sphere.against(plain)) is not None
    ]
    return new + _earlier(runs)


def _earlier(runs: Sequence[Run]) -> list[Effect]:
    found = []
    for name, alike in grouped(pairs(runs), lambda pair: kind(pair.plain)).items():
        differences = [each for pair in alike if (each := pair.difference("val/efficacy")) is not None]
        if differences:
            key = alike[0].plain.key
            remembers = key.method == "alphaedit" or key.label.startswith(MEMORY)
            edits = " or ".join(dict.fromkeys(f"{pair.edits:.0f}" for pair in alike))
            found.append(Effect(f"{name}, SmolLM2, {edits} (earlier)", pooled(differences), remembers))
    return found


def answer(found: Sequence[Effect], models: int) -> str:
    """The answer in words, counted from the intervals, for comparisons on so many models."""
    remembering = [each for each in found if each.remembers]
    higher, lower = (sum(each.difference.side == side for each in remembering) for side in (1, -1))
    forgetful = [each for each in found if not each.remembers]
    gained = sum(each.difference.side > 0 for each in forgetful)
    same = len(remembering) - higher - lower
    widest = max((each.difference.interval[1] for each in remembering), default=0.0)
    where = f"{models} model{'s' * (models > 1)}"
    return (
        f"**{'In part' if higher else 'No'}.** Of {len(remembering)} comparisons of methods that remember the keys of "
        f"their edits, on {where}, the projection leaves more facts standing in {higher}, fewer in {lower} and is not "
        f"told apart from doing nothing in {same} (95 % intervals; none reaches above {widest:+.2f}). Of "
        f"{len(forgetful)} comparisons of methods that forget them, it leaves more standing in {gained}."
    )
