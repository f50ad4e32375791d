"""docs/models.md says what the table of families says."""

import re
from pathlib import Path

from sphere_pl.model.architectures import ARCHITECTURES, Architecture

TEXT = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
ROWS = {found[1]: found[0] for found in re.finditer(r"^\| `(\w+)` \|.*$", TEXT, re.MULTILINE)}


def row(name: str, entry: Architecture) -> str:
    """The row of a family, up to how it was checked."""
    matrix = f"`{entry.projection}`" + (f", `{entry.shared_expert}`" if entry.shared_expert else "")
    between = f"`{entry.output_norm}`" if entry.output_norm else "nothing"
    between = f"times `{entry.output_scale}`" if entry.output_scale else between
    factor = f"`{entry.logit_scale}`" if entry.logit_scale else ""
    return f"| `{name}` | {matrix} | {between} | {factor} | "


def test_every_family_has_its_row_and_says_how_it_was_checked():
    for name, entry in ARCHITECTURES.items():
        assert ROWS[name].startswith(row(name, entry))
        assert len(ROWS[name]) > len(row(name, entry)) + 2


def test_every_entry_of_ones_own_is_explained():
    assert set(Architecture._fields) <= set(ROWS)
