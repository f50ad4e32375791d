"""What is said of a run folder that somebody damaged."""

import pytest

from sphere_pl.errors import UserError
from sphere_pl.history.saved import SavedRun


@pytest.mark.parametrize(
    ("name", "text"),
    [("config.yaml", "model: ["), ("results.json", "{"), ("edits.jsonl", "{]\n"), ("edits.jsonl", "[1]\n")],
)
def test_a_damaged_file_is_named_with_what_to_do_next(fit, name, text):
    run = fit()
    (run.folder / name).write_text(text)
    with pytest.raises(UserError, match=rf"(?s){name}.*Restore it from a copy"):
        read_all(run.folder)


def read_all(folder):
    run = SavedRun.open(folder)
    return run.config, run.results
