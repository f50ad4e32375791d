import io
import json
import math

from rich.console import Console

from sphere_pl.run.results import show
from sphere_pl.run.summaries import plain

RESULTS = {
    "model": "tiny",
    "method": "AlphaEdit + SPHERE",
    "edits": 3,
    "before": {"efficacy": 0.0, "efficacy_standard_error": 0.0, "perplexity": 40.0, "specificity": None},
    "after": {"efficacy": 0.987, "efficacy_standard_error": 0.011, "perplexity": 41.237, "specificity": None},
    "hyperspherical_energy": {"w": {"before": 200.0, "after": 201.0}},
    "seconds_per_edit": 0.7391,
    "seconds_total": 65.2,
    "peak_memory_bytes": 3 * 2**30,
}


def test_the_table_shows_before_and_after_with_standard_errors(tmp_path):
    console = Console(file=io.StringIO(), width=100)
    show(RESULTS, tmp_path, console)
    text = console.file.getvalue()
    for words in ("0.987 ± 0.011", "41.2", "201 (+0.50 %)", "0.739", "3.00 GiB", "report.html"):
        assert words in text
    assert "AlphaEdit + SPHERE on tiny, 3 edits" in text


def test_what_could_not_be_measured_is_null_in_json():
    clean = plain({"a": math.nan, "b": {"c": math.inf, "d": 1.0}})
    assert json.loads(json.dumps(clean, allow_nan=False)) == {"a": None, "b": {"c": None, "d": 1.0}}
