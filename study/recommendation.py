"""Which configuration to take: what `--config recommended` carries, and what speaks for it and against it."""

from collections.abc import Sequence

from study.comparison import MODELS, NAMES, Result, find, of_model
from study.paired import Exchanged
from study.runs import Run
from study.tables import CLEAR, apart, percent

RECOMMENDED, RIVAL, RETRIEVAL = "alphaedit", "memit_seq", "scr_unconfirmed"


def recommendation(results: Sequence[Result]) -> str:
    """The table: up to so many facts, this model, this configuration."""
    lines = [
        "| you have | model | take | holds | in other words | others as before | minus its rival's | minus SCR's |",
        "|---|---|---|---|---|---|---|---|",
        *(line for model in MODELS for line in _rows(results, model)),
    ]
    return "\n".join(lines)


def told_apart(results: Sequence[Result]) -> str:
    """How often the recommended method is told apart from its rival, in words."""
    found = [each for each in _against(results, RIVAL) if each is not None]
    clear = [each for each in found if each.p_value < CLEAR]
    better = sum(each.difference.value > 0 for each in clear)
    return (
        f"on the same facts it is told apart from {NAMES[RIVAL]} in {len(clear)} of {len(found)} settings "
        f"(better in {better})."
    )


def _against(results: Sequence[Result], method: str) -> list[Exchanged | None]:
    pairs = [
        (find(rows, RECOMMENDED), find(rows, method)) for model in MODELS for rows in of_model(results, model).values()
    ]
    return [mine.against(other) for mine, other in pairs if mine is not None and other is not None]


def _rows(results: Sequence[Result], model: str) -> list[str]:
    lines = []
    for edits, rows in of_model(results, model).items():
        mine = find(rows, RECOMMENDED)
        if mine is None or mine.broke:
            continue
        others = [find(rows, method) for method in (RIVAL, RETRIEVAL)]
        cells = [
            f"up to {edits} facts",
            MODELS[model],
            f"`--config recommended --data.batch_size {mine.key.batch_size}`",
            *(percent(mine.share(kind)) for kind in ("written", "written_paraphrase", "neighbor")),
            *("" if other is None else apart(mine.against(other)) for other in others),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def longer(runs: Sequence[Run]) -> str:
    """What streams longer than these leave of the default model, in the earlier study: efficacy by number of edits."""
    chosen = [run for run in runs if run.key.method == RECOMMENDED and run.key.variant == "plain" and run.key.draw > 0]
    kept = [run for run in chosen if run.key.data == "counterfact" and run.key.label.startswith("ridge10")]
    last = {run.key.edits: run.at("val/efficacy", run.last) for run in kept}
    return ", ".join(f"{value:.2f} after {edits:,}" for edits, value in sorted(last.items()) if value is not None)
