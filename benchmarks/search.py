"""Find settings for a model: one run of `python -m sphere_pl fit` for each candidate, all in one table.

    python -m benchmarks.search                      # the candidates below, on built-in facts 300 to 359
    python -m benchmarks.search --candidates benchmarks/search_long.txt --limit 100

Every candidate edits the same records, which the reported default run does not touch. Finished candidates are skipped,
so an interrupted search resumes where it was.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

COLUMNS = ("efficacy", "generalization", "specificity", "neighborhood_agreement", "perplexity")


def read_candidates(path: Path) -> list[list[str]]:
    """One candidate a line: the arguments it adds to the default run; `#` begins a comment."""
    lines = [line.split("#")[0].split() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line]


def run(candidate: list[str], folder: Path, offset: int, limit: int) -> dict[str, object]:
    """Edit with one candidate's arguments, unless its results are there already."""
    results = folder / "results.json"
    if not results.exists():
        fixed = [
            f"--data.offset={offset}",
            f"--data.limit={limit}",
            f"--run_dir={folder}",
            "--trainer.val_check_interval=1000",
        ]
        subprocess.run([sys.executable, "-m", "sphere_pl", "fit", *fixed, *candidate], check=True)
    found: dict[str, object] = json.loads(results.read_text(encoding="utf-8"))
    return found


def folder_of(candidate: list[str], root: Path, offset: int, limit: int) -> Path:
    """A folder named by the candidate's arguments."""
    pairs = [part.partition("=") for part in candidate]
    name = "_".join(f"{key.split('.')[-1]}={value.strip('[]').replace(',', '-')}" for key, _, value in pairs)
    return root / f"{offset}-{limit}" / (name.replace("/", "-") or "default")


def main() -> None:
    """Run the search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=Path, default=Path(__file__).with_name("search.txt"))
    parser.add_argument("--out", type=Path, default=Path("runs/search"))
    parser.add_argument("--offset", type=int, default=300)
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--only", type=int, action="append", help="number of a candidate, from 0")
    args = parser.parse_args()
    found = []
    table = Table(*("#", "candidate", *COLUMNS, "s/edit"))
    for index, candidate in enumerate(read_candidates(args.candidates)):
        if args.only and index not in args.only:
            continue
        results = run(candidate, folder_of(candidate, args.out, args.offset, args.limit), args.offset, args.limit)
        found.append({"candidate": candidate, **{name: results[name] for name in ("after", "seconds_per_edit")}})
        after = results["after"]
        assert isinstance(after, dict)
        scores = [f"{after[name]:.3f}" for name in COLUMNS]
        table.add_row(str(index), " ".join(candidate), *scores, f"{results['seconds_per_edit']:.2f}")
        Console(width=200).print(table)
    if not args.only:
        text = json.dumps(found, indent=1) + "\n"
        args.candidates.with_suffix(".json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
