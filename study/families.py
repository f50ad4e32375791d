"""The comparison over model families, as study/conf/families.yaml declares it: `python -m study.families`.

    python -m study.families --estimate                              # what there is to run, and what is finished
    python -m study.families --data ../data --model smollm2_135m=FOLDER --model gemma3_270m=FOLDER ...

One run of the command line for each cell; finished cells are skipped, one that was cut off resumes. Results go to
study/results/families, one JSON file a cell. A result that was made by another version of the specification or of
sphere_pl, with other arguments, or with another model under the same name, is refused by its name and mixed with none.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks.cells import Cell, left_over, run_cell, run_cells
from sphere_pl.errors import UserError
from study.command import records_file
from study.marks import check_result, keep_result

SPEC = Path(__file__).parent / "conf" / "families.yaml"
RESULTS = Path(__file__).parent / "results" / "families"
STAGE = {"models", "methods", "variants", "batch_sizes", "draws", "edits", "validations", "common"}


class Spec(NamedTuple):
    """What is compared.

    Attributes:
        version: Of the specification.
        models: Arguments of each model beside its name.
        targets: Further arguments of each model, for all methods but those of `alone`.
        common: Arguments of every cell.
        methods: Arguments of each method.
        variants: Arguments of each variant.
        alone: Methods that have the first variant of a stage alone.
        stages: What each runs, the entries of `STAGE`.
    """

    version: int
    models: dict[str, list[str]]
    targets: dict[str, list[str]]
    common: list[str]
    methods: dict[str, list[str]]
    variants: dict[str, list[str]]
    alone: list[str]
    stages: dict[str, dict[str, Any]]


class Key(NamedTuple):
    """What a cell's name says."""

    model: str
    method: str
    variant: str
    batch_size: int
    draw: int
    edits: int

    @property
    def name(self) -> str:
        """Name of the cell's files."""
        ends = f"batch{self.batch_size}-draw{self.draw}-{self.edits}"
        return f"{self.model}-{self.method}-{self.variant}-{ends}"


def read_spec(path: Path = SPEC) -> Spec:
    """Read a specification.

    Raises:
        UserError: If it lacks an entry, has one that is unknown, or names a method or variant that it does not define.
    """
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or set(found) != set(Spec._fields):
        raise UserError(f"{path} must hold {', '.join(Spec._fields)}, found {sorted(found or ())}.")
    spec = Spec(**found)
    for name, stage in spec.stages.items():
        if set(stage) != STAGE:
            raise UserError(f"{path}: stage {name} must hold {', '.join(sorted(STAGE))}, found {sorted(stage)}.")
        defined = {"models": spec.models, "methods": spec.methods, "variants": spec.variants}
        unknown = [
            each for entry, known in defined.items() for each in _chosen(stage[entry], known) if each not in known
        ]
        if unknown:
            raise UserError(f"{path}: stage {name} names {unknown[0]!r}, which is not defined above.")
    return spec


def _chosen(named: Sequence[str] | str, known: Mapping[str, list[str]]) -> list[str]:
    return list(known) if named == "all" else list(named)


def cells_of(spec: Spec, stage: str) -> dict[Key, Cell]:
    """The cells of a stage, model by model and draw by draw, so that a stage that is cut has whole comparisons."""
    plan = spec.stages[stage]
    models, methods = _chosen(plan["models"], spec.models), _chosen(plan["methods"], spec.methods)
    keys = [
        Key(model, method, variant, size, draw, plan["edits"])
        for draw in plan["draws"]
        for model in models
        for size in plan["batch_sizes"]
        for method in methods
        for variant in (plan["variants"][:1] if method in spec.alone else plan["variants"])
    ]
    return {key: Cell(key.name, _arguments(spec, key, plan), key.edits) for key in keys}


def _arguments(spec: Spec, key: Key, plan: Mapping[str, Any]) -> tuple[str, ...]:
    targets = () if key.method in spec.alone else spec.targets[key.model]
    chosen = (*spec.models[key.model], *targets, *spec.methods[key.method], *spec.variants[key.variant])
    sizes = (f"--data.batch_size={key.batch_size}", f"--data.limit={key.edits}")
    every = f"--trainer.val_check_interval={max(1, key.edits // key.batch_size // plan['validations'])}"
    return (*spec.common, *plan["common"], *chosen, *sizes, every)


def read_results(spec: Spec, stage: str, folder: Path = RESULTS) -> dict[Key, dict[str, Any]]:
    """All finished cells of a stage.

    Raises:
        UserError: If one does not belong with the others.
    """
    found = {}
    for key, cell in cells_of(spec, stage).items():
        path = folder / f"{key.name}.json"
        if path.exists():
            found[key] = check_result(path, cell, spec.version)
    check_models(found, folder)
    return found


def check_models(found: Mapping[Key, Mapping[str, Any]], folder: Path) -> None:
    """Refuse two models under one name."""
    first: dict[str, Key] = {}
    for key, result in found.items():
        other = first.setdefault(key.model, key)
        if result["fingerprint"] != found[other]["fingerprint"]:
            raise UserError(
                f"{folder / key.name}.json was run on another model than {other.name}.json, both called {key.model}: "
                "its folder has changed. Move the older ones away, and run them again."
            )


def run_one(key: Key, cell: Cell, spec: Spec, model: str, source: Path, runs: Path) -> None:
    """Run a cell, and note what its result belongs to."""
    results, folder = RESULTS / f"{key.name}.json", runs / key.name
    if results.exists():
        check_result(results, cell, spec.version)
        return
    records = records_file("counterfact", key.draw, source, runs)
    scratch = folder.with_suffix(".json")  # what is not marked yet is no result
    scratch.unlink(missing_ok=True)
    run_cell(cell, folder, scratch, [f"--data.path={records}", f"--model.name={model}"])
    keep_result(results, scratch, cell, spec.version, folder)


def _models(given: Sequence[str], spec: Spec) -> dict[str, str]:
    pairs = dict(each.partition("=")[::2] for each in given)
    unknown = sorted({*pairs} - {*spec.models})
    if unknown:
        raise UserError(f"--model {unknown[0]}: the specification has {', '.join(spec.models)}.")
    return pairs


def main() -> None:
    """Estimate, or run what is left of the models that are given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", default="main", help="a stage of the specification")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER", help="may be repeated")
    parser.add_argument("--data", type=Path, help="folder with counterfact_rebuilt.json")
    parser.add_argument("--runs", type=Path, default=Path("runs/families"), help="folder of the run folders")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--estimate", action="store_true", help="only say what is left")
    args = parser.parse_args()
    spec = read_spec()
    if args.stage not in spec.stages:
        parser.error(f"--stage {args.stage}: the specification has {', '.join(spec.stages)}")
    models, cells = _models(args.model, spec), cells_of(spec, args.stage)
    read_results(spec, args.stage)  # what does not belong is named before anything runs
    by_name = {cell.name: key for key, cell in cells.items() if not models or key.model in models}
    chosen = [cell for cell in cells.values() if cell.name in by_name]
    left = left_over(chosen, lambda cell: RESULTS / f"{cell.name}.json", args.jobs)
    if args.estimate or not left:
        return
    if args.data is None or not models:
        parser.error("--data and --model NAME=FOLDER are needed to run cells")

    def one(cell: Cell) -> None:
        key = by_name[cell.name]
        run_one(key, cell, spec, models[key.model], args.data, args.runs)

    run_cells(left, one, args.jobs)


if __name__ == "__main__":
    main()
