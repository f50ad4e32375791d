"""Where old facts go: what later edits of a finished run do at the keys that earlier ones were written at, and to text.

    python -m study.forgetting --run <run folder> --name "AlphaEdit" [--after 500] [--facts 300]

Weights are rebuilt from the run's log: those right after `--after` edits, and those at the end. Keys of the last facts
edited before are taken from both models. Figures are kept in study/forgetting.json, by the run's name and matrix.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sphere_pl.editing.kept_moments import second_moments
from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.editing.representations import SubjectStream
from sphere_pl.history.log import EditHistory, read_log
from sphere_pl.history.rebuild import rebuild
from sphere_pl.model.families import EditSite
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.loading import load_language_model
from sphere_pl.progress import untracked
from sphere_pl.storage.files import write_text

KEPT = Path(__file__).with_name("forgetting.json")


class Forgotten(NamedTuple):
    """What later edits do to earlier ones at one matrix, means over facts.

    Attributes:
        remembered: Norm of what later edits change at the key that the fact was written at, over the norm of what the
            edits up to then, its own among them, had changed there.
        present: The same at the key that the fact has at the end.
        cosine: Of the two keys.
        taken: Mean squared change of the output at an ordinary key, by all edits; in the model's own units, so that
            only runs on one model compare.
    """

    remembered: float
    present: float
    cosine: float
    taken: float


def forgotten(
    base: Tensor, then: Tensor, now: Tensor, keys_then: Tensor, keys_now: Tensor, moment: Tensor
) -> Forgotten:
    """Compare two states of a matrix.

    Args:
        base: The unedited matrix, `[d_out, d_in]`.
        then: It right after the facts were edited.
        now: It at the end.
        keys_then: The facts' keys right after they were edited, `[n, d_in]`.
        keys_now: Their keys at the end.
        moment: `E[k kᵀ]` of ordinary keys, `[d_in, d_in]`.

    Example:
        >>> eye = torch.eye(2)
        >>> forgotten(0 * eye, eye, 1.5 * eye, eye, eye, eye)
        Forgotten(remembered=0.5, present=0.5, cosine=1.0, taken=4.5)
    """
    own = (keys_then @ (then - base).T).norm(dim=1)
    moved = [(keys @ (now - then).T).norm(dim=1) / own for keys in (keys_then, keys_now)]
    taken = ((now - base) @ moment * (now - base)).sum()
    return Forgotten(*(float(each.mean()) for each in (*moved, cosine_similarity(keys_then, keys_now), taken)))


def measure(folder: Path, after: int, facts: int) -> dict[str, Forgotten]:
    """What became of the last `facts` facts of the first `after` ones, for each edited matrix of a run."""
    history = read_log(folder)
    lm = load_language_model(history.header.model)
    sites = lm.sites(history.header.layers)
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["model"]["statistics"]
    moments = second_moments(lm, sites, StatisticsSettings(**settings), untracked)
    base = {site.name: site.read() for site in sites}
    then, now = (rebuild(base, history, history.number_at(edits)) for edits in (after, None))
    chosen = slice(after - facts, after)
    old, new = (_keys(lm, sites, state, history, chosen) for state in (then, now))
    found = {}
    for place, name in enumerate(site.name for site in sites):
        matrices = base[name], then[name], now[name]
        found[name] = forgotten(*matrices, old[place], new[place], moments[name].matrix)
    return found


def _keys(
    lm: LanguageModel, sites: Sequence[EditSite], weights: dict[str, Tensor], history: EditHistory, chosen: slice
) -> list[Tensor]:
    for site in sites:
        site.write(weights[site.name])
    return list(SubjectStream(lm, history.requests[chosen], [""], sites[0].layer, 1024).all_keys(sites))


def read_forgotten(path: Path = KEPT) -> dict[str, dict[str, Forgotten]]:
    """What was kept, by run and matrix."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {run: {name: Forgotten(**each) for name, each in matrices.items()} for run, matrices in found.items()}


def forgetting_table(found: dict[str, dict[str, Forgotten]]) -> list[str]:
    """A line for each run: its matrices from the shallowest to the deepest, and what all take from ordinary text."""
    lines = [
        "| composition | moved by later edits, at the remembered key | at today's key | cosine of the two "
        "| taken from ordinary text, times the first line's |",
        "|---|---|---|---|---|",
    ]
    totals = {run: sum(each.taken for each in matrices.values()) for run, matrices in found.items()}
    for run, matrices in found.items():
        columns = list(zip(*matrices.values(), strict=True))
        cells = [", ".join(f"{value:.{places}f}" for value in columns[at]) for at, places in enumerate((2, 2, 3))]
        lines.append(f"| {run} | {' | '.join(cells)} | {totals[run] / next(iter(totals.values())):.2f} |")
    return lines if found else []


def main() -> None:
    """Measure a run and keep it beside the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a finished run's folder, with its edit log")
    parser.add_argument("--name", required=True, help="what the page calls it")
    parser.add_argument("--after", type=int, default=500, help="edits after which keys are remembered")
    parser.add_argument("--facts", type=int, default=300, help="how many facts before that")
    given = parser.parse_args()
    with torch.no_grad():
        found = measure(given.run, given.after, given.facts)
    known = {**read_forgotten(), given.name: found}
    kept = {run: {name: each._asdict() for name, each in matrices.items()} for run, matrices in known.items()}
    write_text(KEPT, json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
