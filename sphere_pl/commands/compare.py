"""`python -m sphere_pl compare runs/a runs/b`: one page for several runs."""

import sys
from collections.abc import Sequence
from pathlib import Path

from sphere_pl.commands.parsers import Parser
from sphere_pl.errors import UserError
from sphere_pl.text.names import quoted
from sphere_pl.text.usage import program


def main(args: Sequence[str]) -> None:
    """Write the comparison of run folders: a page, and its table as CSV and LaTeX.

    Raises:
        UserError: If a folder is no run folder, or there is only one.
    """
    parser = Parser("compare", description="Compare finished runs on one page.")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, two or more")
    parser.add_argument("--out", type=Path, default=Path("comparison.html"), help="the page to write")
    given = parser.parse_args(args)
    from sphere_pl.report import write_comparison
    from sphere_pl.report.reading import read_run

    if len({run.resolve() for run in given.runs}) == 1:
        run = given.runs[0]
        read_run(run)  # says what is wrong with it, if it is no run
        raise UserError(
            f"One run has nothing to be compared with. Its own page is {run / 'report.html'}; name further runs: "
            f"{program()} compare {quoted(run)} <another run>."
        )
    sys.stdout.write(f"Open {write_comparison(given.runs, given.out)}\n")
