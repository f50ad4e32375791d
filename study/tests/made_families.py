"""Finished cells of the comparison over families, made up."""

from study.comparison import Result
from study.families import Key


def make_result(method="alphaedit", variant="plain", written="++--", model="smollm2_135m", edits=4, draw=1, **more):
    """A finished cell; each kind of prompt is answered as `written`, unless it is given."""
    kinds = ("written_paraphrase", "own", "paraphrase", "neighbor")
    outcomes = {"written": written, **{kind: more.pop(kind, written) for kind in kinds}} if written else {}
    found = {
        "outcomes": outcomes,
        "failed": None if written else "error: collapsed",
        "before": {"perplexity": 40.0},
        "after": {"perplexity": 44.0, "long_prefix/efficacy": 0.5, "long_prefix/efficacy_standard_error": 0.25},
        "batches": {"edits": [2.0, 4.0], "energy/change": [1e-5, -2e-5]},
    }
    return Result(Key(model, method, variant, 2, draw, edits), {**found, **more})
