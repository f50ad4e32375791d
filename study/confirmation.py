"""Retrieval alone: which questions are read with a fact in front, with and without asking the model first.

    python -m study.confirmation --data ../data --model smollm2_135m=FOLDER

The facts are the first of the comparison over models. Nothing is edited and no answer is scored, so that this costs a
minute where a run costs ten. Results go to study/results/confirmation, one JSON file a model.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sphere_pl.data.datamodule import EditDataModule
from sphere_pl.data.request import EditRequest
from sphere_pl.errors import UserError
from sphere_pl.evaluation.fact_list import FactList
from sphere_pl.methods.retrieval import Retrieval
from sphere_pl.model.fingerprint import fingerprint
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.loading import load_language_model
from sphere_pl.storage.files import write_text
from sphere_pl.text.version import __version__
from study.command import records_file
from study.comparison import MODELS
from study.outcomes import HIT, MISS, UNASKED
from study.paired import share
from study.tables import percent

RESULTS = Path(__file__).parent / "results" / "confirmation"
FACTS, DRAW = 60, 1
KINDS = ("own", "paraphrase", "neighbor")


def readings(lm: LanguageModel, requests: Sequence[EditRequest], settings: Retrieval) -> dict[str, str]:
    """Which questions are read with a fact in front: a sign for each fact and kind of question.

    `right` says of each paraphrase whether the fact that it is read with is its own.
    """
    reading = FactList(lm, requests, settings)
    asked: dict[str, list[str | None]] = {
        "own": [each.question for each in requests],
        "paraphrase": [next(iter(each.paraphrases), None) for each in requests],
        "neighbor": [next(iter(each.neighbors), None) for each in requests],
    }
    read = {kind: _read(reading, texts) for kind, texts in asked.items()}
    found = {kind: _signs(asked[kind], read[kind]) for kind in KINDS}
    own = [
        text is not None and each.target_new in text for text, each in zip(read["paraphrase"], requests, strict=True)
    ]
    return {**found, "right": "".join(HIT if each else MISS for each in own)}


def _read(reading: FactList, texts: Sequence[str | None]) -> list[str | None]:
    there = [text for text in texts if text is not None]
    whole = iter(reading(there))
    return [None if text is None else next(whole) for text in texts]


def _signs(asked: Sequence[str | None], read: Sequence[str | None]) -> str:
    pairs = zip(asked, read, strict=True)
    return "".join(UNASKED if text is None else HIT if whole != text else MISS for text, whole in pairs)


def measure(lm: LanguageModel, requests: Sequence[EditRequest]) -> dict[str, Any]:
    """Both ways for a model, and what the result belongs to."""
    settings = {name: replace(Retrieval(), confirm=name == "asked") for name in ("asked", "unasked")}
    found = {name: readings(lm, requests, each) for name, each in settings.items()}
    marks = {"sphere_pl": __version__, "facts": len(requests), "retrieval": asdict(Retrieval())}
    return {**marks, "fingerprint": fingerprint(lm), **found}


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """All results, by model.

    Raises:
        UserError: If one is of another version, other facts or other settings.
    """
    found = {}
    wanted = {"sphere_pl": __version__, "facts": FACTS, "retrieval": asdict(Retrieval())}
    for name in MODELS:
        path = folder / f"{name}.json"
        if path.exists():
            found[name] = json.loads(path.read_text(encoding="utf-8"))
            wrong = [key for key, value in wanted.items() if found[name].get(key) != value]
            if wrong:
                raise UserError(f"{path} has another {wrong[0]} than this version asks for. Move it away and run it.")
    return found


def confirmation_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What asking the model changes, a line for each model and way."""
    lines = [
        "| model | is it asked whether the fact applies | own prompts read with a fact | paraphrases | neighbours |",
        "|---|---|---|---|---|",
    ]
    for name, result in found.items():
        for way, words in (("unasked", "no"), ("asked", "yes")):
            cells = " | ".join(percent(share(result[way][kind])) for kind in KINDS)
            lines.append(f"| {MODELS[name]} | {words} | {cells} |")
    return "\n".join(lines) if found else ""


def main() -> None:
    """Measure the models named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with counterfact_rebuilt.json")
    parser.add_argument("--model", action="append", required=True, metavar="NAME=FOLDER", help="may be repeated")
    parser.add_argument("--runs", type=Path, default=Path("runs/families"), help="folder for the records")
    args = parser.parse_args()
    records = records_file("counterfact", DRAW, args.data, args.runs)
    data = EditDataModule(name="counterfact", path=str(records), limit=FACTS)
    data.setup("fit")
    for pair in args.model:
        name, _, folder = pair.partition("=")
        if name not in MODELS:
            parser.error(f"--model {name}: known are {', '.join(MODELS)}")
        found = measure(load_language_model(folder), data.requests)
        write_text(RESULTS / f"{name}.json", json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
