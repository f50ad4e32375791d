"""`python -m sphere_pl compare runs/a runs/b`: one page for several runs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(args: Sequence[str]) -> None:
    """Write the comparison of run folders: a page, and its table as CSV and LaTeX.

    Raises:
        UserError: If a folder is no run folder.
    """
    parser = argparse.ArgumentParser(prog="sphere_pl compare", description="Compare finished runs on one page.")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--out", type=Path, default=Path("comparison.html"), help="the page to write")
    given = parser.parse_args(args)
    from sphere_pl.report import write_comparison

    sys.stdout.write(f"Open {write_comparison(given.runs, given.out)}\n")
