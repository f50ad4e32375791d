"""The numbers of a report: how a change is written."""

import math

import pytest

from sphere_pl.evaluation.metrics.table import PROTOCOLS
from sphere_pl.report.scores import _difference


@pytest.mark.parametrize(
    ("metric", "before", "after", "shown"),
    [
        ("efficacy", 0.1, 0.95, "+85.0"),
        ("perplexity", 40.0, 50.0, "+25 %"),
        ("probability/efficacy_magnitude", -0.317, 0.72, "+1.04"),
        ("fluency", math.nan, 5.0, "–"),
    ],
)
def test_a_change_is_in_points_in_per_cent_or_plain(metric, before, after, shown):
    assert _difference(metric, before, after) == shown


def test_every_protocol_says_what_it_counts():
    assert [protocol.name for protocol in PROTOCOLS if not protocol.meaning] == []
