"""What the comparison over model families found: its cells read together, and compared fact by fact."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sphere_pl.errors import UserError
from study.families import RESULTS, Key, Spec, check_models, read_results
from study.paired import Exchanged, exchanged, share
from study.runs import Estimate

# Stages that docs/study.md tells of.
RUN = (
    "default_model",
    "other_models",
    "other_models_sphere",
    "default_model_sphere",
    "more_orders",
    "new_methods",
    "more_methods",
    "new_methods_sphere",
    "other_models_300",
    "other_models_methods",
    "thousand",
    "longest",
    "longest_compositions",
    "longest_retry",
    "recommended",
    "recommended_300",
    "rival_300",
    "compositions",
)
NAMES = {
    "unedited": "unedited",
    "scr": "SCR",
    "scr_unconfirmed": "SCR, unconfirmed",
    "alphaedit": "AlphaEdit",
    "memit": "MEMIT",
    "memit_seq": "MEMIT with memory",
    "rlsedit": "RLSEdit",
    "evoedit": "EvoEdit",
    "crispedit": "MEMIT with memory + CrispEdit",
    "suit": "SUIT's keys",
    "eamet": "EAMET's targets",
    "ultraedit": "UltraEdit",
    "emmet": "EMMET",
    "rect": "MEMIT + RECT",
    "prune": "MEMIT + PRUNE",
    "ft": "fine-tuning",
    "locft_bf": "LocFT-BF",
}
VARIANTS = {
    "plain": "",
    "sphere": " + SPHERE",
    "wide": ", layers 2 to 8",
    "wide_weak": ", layers 2 to 8, weight 300",
    "steady": ", layers 1 to 6, weight 2,000",
    "steady_retry": ", layers 1 to 6, weight 2,000, failed facts again",
    "retry": ", failed facts again",
    "gentle_retry": ", layers 1 to 6, weight 4,000, failed facts again",
}
MODELS = {
    "smollm2_135m": "SmolLM2-135M-Instruct",
    "gemma3_270m": "Gemma-3-270M",
    "qwen2_5_coder_0_5b": "Qwen2.5-Coder-0.5B-Instruct",
}
KINDS = {"written", "written_paraphrase", "own", "paraphrase", "neighbor"}
# Methods that remember the keys of earlier edits.
REMEMBERING = ("alphaedit", "memit_seq", "rlsedit", "evoedit", "crispedit", "suit")


class Result(NamedTuple):
    """A finished cell."""

    key: Key
    found: dict[str, Any]

    @property
    def name(self) -> str:
        """Method and variant, as a reader calls them."""
        return NAMES.get(self.key.method, self.key.method) + VARIANTS[self.key.variant]

    @property
    def broke(self) -> bool:
        """Whether the run broke off, so that nothing can be said of all its facts."""
        return not self.found["outcomes"]

    def signs(self, kind: str) -> str:
        """A sign for each fact; see `study.outcomes`."""
        found: str = self.found["outcomes"][kind]
        return found

    def share(self, kind: str) -> Estimate:
        """Share of the facts that hold; NaN of a run that broke off."""
        return Estimate(math.nan, math.nan) if self.broke else share(self.signs(kind))

    def held(self, kind: str = "written") -> tuple[int, int]:
        """How many facts hold, of how many."""
        signs = self.signs(kind)
        return signs.count("+"), len(signs) - signs.count(" ")

    def after(self, name: str) -> float:
        """A score of results.json after the edits; NaN if it was not measured."""
        value = (self.found.get("after") or {}).get(name)
        return math.nan if value is None else float(value)

    @property
    def perplexity(self) -> float:
        """Perplexity, times the unedited model's."""
        return self.after("perplexity") / float((self.found.get("before") or {}).get("perplexity", math.nan))

    @property
    def energy(self) -> float:
        """Relative change of the hyperspherical energy, mean over the edited matrices."""
        return float((self.found["batches"].get("energy/change") or [math.nan])[-1])

    def against(self, other: "Result", kind: str = "written") -> Exchanged | None:
        """This run minus another on the same facts; None if they are not the same facts or one broke off."""
        mine, its = self.key, other.key
        if (mine.model, mine.draw, mine.edits) != (its.model, its.draw, its.edits) or self.broke or other.broke:
            return None
        return exchanged(other.signs(kind), self.signs(kind))


def read_all(spec: Spec, folder: Path = RESULTS, stages: Sequence[str] = RUN) -> list[Result]:
    """All finished cells of some stages, stage by stage.

    Raises:
        UserError: If one does not belong with the others, within its stage or over all of them.
    """
    found = {key: result for stage in stages for key, result in read_results(spec, stage, folder).items()}
    check_models(found, folder)
    for key, result in found.items():
        if set(result.get("outcomes", ())) not in (set(), KINDS):
            raise UserError(f"{folder / key.name}.json does not say what became of each fact. Run the cell again.")
    return [Result(key, result) for key, result in found.items()]


def of_model(results: Sequence[Result], model: str) -> dict[int, list[Result]]:
    """The results of a model in the first order of its facts, by how many were edited, the fewest first."""
    mine = [each for each in results if each.key.model == model]
    first = {edits: min(each.key.draw for each in mine if each.key.edits == edits) for edits in lengths(mine)}
    return {
        edits: sorted((each for each in mine if (each.key.edits, each.key.draw) == (edits, draw)), key=_place)
        for edits, draw in first.items()
    }


def _place(each: Result) -> tuple[int, int]:
    """Methods stand in the order of `NAMES`, each with its variants."""
    return [*NAMES].index(each.key.method), [*VARIANTS].index(each.key.variant)


def fullest(results: Sequence[Result], model: str) -> list[Result]:
    """The results of a model after as many edits as most methods were run on, the most of these; none if none were."""
    return max(of_model(results, model).values(), key=lambda rows: (len(rows), rows[0].key.edits), default=[])


def lengths(results: Sequence[Result]) -> list[int]:
    """How many facts were edited, in any of the results, the fewest first."""
    return sorted({each.key.edits for each in results})


def find(results: Sequence[Result], method: str, variant: str = "plain") -> Result | None:
    """The one result of a method among those of one model and length."""
    return next((each for each in results if (each.key.method, each.key.variant) == (method, variant)), None)


def sphere_pairs(results: Sequence[Result]) -> list[tuple[Result, Result]]:
    """Runs without and with SPHERE that are alike otherwise, those that both finished."""
    by_key: Mapping[Key, Result] = {each.key: each for each in results if not each.broke}
    plain = [each for each in by_key.values() if each.key.variant == "plain"]
    pairs = [(each, by_key.get(each.key._replace(variant="sphere"))) for each in plain]
    return [(first, second) for first, second in pairs if second is not None]
