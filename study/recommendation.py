"""Which configuration to take: what `--config recommended` carries, and what speaks for it and against it."""

from collections.abc import Sequence

from study.comparison import MODELS, NAMES, Result, find, of_model
from study.families import Spec
from study.paired import Exchanged
from study.runs import Run
from study.tables import CLEAR, apart, percent

RECOMMENDED, RIVAL, RETRIEVAL = "alphaedit", "memit_seq", "scr_unconfirmed"
AGAIN = "retry"  # what `--config recommended` adds: failed facts are edited again
READING = ("unedited", "scr", "scr_unconfirmed")  # what edits no weight
BROKEN = 2.0  # times the unedited model's perplexity from which on a model is not to be used
KINDS = ("written", "written_paraphrase", "neighbor")


def recommendation(results: Sequence[Result], spec: Spec) -> str:
    """The table: up to so many facts, this model, this configuration; and what holds more at no higher perplexity.

    Retrieval is named where the recommended one breaks the model, in its place.
    """
    lines = [
        "| you have | model | take | holds | in other words | others as before | perplexity "
        "| holds, minus AlphaEdit's | minus MEMIT with memory's | minus SCR's |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(line for model in MODELS for line in _rows(results, model, spec)),
    ]
    return "\n".join(lines)


def recommended(rows: Sequence[Result]) -> Result | None:
    """What `--config recommended` carries, or the same without editing anything again where only that was run."""
    return find(rows, RECOMMENDED, AGAIN) or find(rows, RECOMMENDED)


def told_apart(results: Sequence[Result]) -> str:
    """How often the recommended method is told apart from its rivals, in words."""
    again, once = _against(results, RIVAL, AGAIN), _against(results, RIVAL)
    itself, both = _against(results, RECOMMENDED, AGAIN), _against(results, RIVAL, AGAIN, AGAIN)
    alike = f" Where both edit failed facts again it holds {_counted(both, NAMES[RIVAL])}." if both else ""
    return (
        f"on the same facts, told apart at 5 %, it holds {_counted(again, NAMES[RIVAL])}, and "
        f"{_counted(itself, 'without that')}. Without that it holds {_counted(once, NAMES[RIVAL])}.{alike}"
    )


def _counted(found: Sequence[Exchanged], than: str) -> str:
    clear = [each for each in found if each.p_value < CLEAR]
    better = sum(each.difference.value > 0 for each in clear)
    return f"more than {than} in {better} of {len(found)} settings and fewer in {len(clear) - better}"


def stronger(results: Sequence[Result], spec: Spec) -> str:
    """Which other editors hold more of the same facts than the recommended one, and what that costs, in words."""
    found = [
        _stronger(each, mine, spec)
        for model in MODELS
        for rows in of_model(results, model).values()
        if (mine := recommended(rows)) is not None
        for each in rows
        if _beats(each, mine)
    ]
    if not found:
        return "No other editor here holds more of the same facts, told apart at 5 %."
    return (
        f"Told apart at 5 % for holding more of the same facts: {'; '.join(found)}. `--config recommended`, which must "
        "do on any model and for few facts too, does not carry what was run on one model in one order."
    )


def _beats(each: Result, mine: Result) -> bool:
    return each.key.method not in READING and _clearly_more(each, mine)


def _clearly_more(each: Result, mine: Result) -> bool:
    compared = each.against(mine)
    return compared is not None and compared.difference.value > 0 and compared.p_value < CLEAR


def _stronger(each: Result, mine: Result, spec: Spec) -> str:
    held, other_words, others = (apart(each.against(mine, kind)) for kind in KINDS)
    return (
        f"after {each.key.edits:,} edits of {MODELS[each.key.model]}, {each.name} (`{command(each, spec)}`) {held}, in "
        f"other words {other_words}, others as before {others}, perplexity x{each.perplexity:.2f} where that of "
        f"{mine.name} is x{mine.perplexity:.2f}"
    )


def command(each: Result, spec: Spec) -> str:
    """The arguments that stand for a composition."""
    if each.key.method == RECOMMENDED and each.key.variant in ("plain", AGAIN):
        return "--config recommended" + " --retry 0" * (each.key.variant == "plain")
    given = [*spec.methods[each.key.method], *spec.variants[each.key.variant]]
    return " ".join(word.replace("=", " ", 1) for word in given if word != "--projection.strength=0")


def _against(
    results: Sequence[Result], method: str, variant: str = "plain", its_variant: str = "plain"
) -> list[Exchanged]:
    groups = [rows for model in MODELS for rows in of_model(results, model).values()]
    pairs = [(find(rows, RECOMMENDED, variant), find(rows, method, its_variant)) for rows in groups]
    found = [mine.against(other) for mine, other in pairs if mine is not None and other is not None]
    return [each for each in found if each is not None]


def _rows(results: Sequence[Result], model: str, spec: Spec) -> list[str]:
    lines = []
    for edits, rows in of_model(results, model).items():
        mine = recommended(rows)
        if mine is None or mine.broke:
            continue
        better = [each for each in rows if _beats(each, mine) and each.perplexity <= mine.perplexity]
        retrieval = find(rows, RETRIEVAL)
        broken = mine.perplexity > BROKEN and retrieval is not None and _clearly_more(retrieval, mine)
        for each in (retrieval, *better) if broken and retrieval else (mine, *better):
            rival = find(rows, RIVAL, mine.key.variant) or find(rows, RIVAL)
            others = [find(rows, RECOMMENDED), rival, find(rows, RETRIEVAL)]
            cells = [
                f"up to {edits:,} facts",
                MODELS[model],
                f"`{command(each, spec)} --data.batch_size {each.key.batch_size}`",
                *(percent(each.share(kind)) for kind in KINDS),
                f"x{each.perplexity:.2f}",
                *("" if other in (None, each) else apart(each.against(other)) for other in others),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def longer(runs: Sequence[Run]) -> str:
    """What streams longer than these leave of the default model, in the earlier study: efficacy by number of edits."""
    chosen = [run for run in runs if run.key.method == RECOMMENDED and run.key.variant == "plain" and run.key.draw > 0]
    kept = [run for run in chosen if run.key.data == "counterfact" and run.key.label.startswith("ridge10")]
    last = {run.key.edits: run.at("val/efficacy", run.last) for run in kept}
    return ", ".join(f"{value:.2f} after {edits:,}" for edits, value in sorted(last.items()) if value is not None)
