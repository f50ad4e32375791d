"""The report as text, in a notebook, and on a console that knows few signs."""

import io
import sys

import pytest

from sphere_pl.api.report import EditReport, FactResult

RESULTS = {
    "method": "AlphaEdit + SPHERE", "model": "m", "edits": 2, "data": "2 edits", "hyperspherical_energy": {},
    "before": {"efficacy": 0.0, "efficacy_standard_error": 0.0}, "seconds_total": 3.0, "peak_memory_bytes": 10**9,
    "after": {"efficacy": 0.5, "efficacy_standard_error": 0.5}, "seconds_per_edit": 1.0,
}  # fmt: skip


@pytest.fixture
def report():
    facts = (FactResult("a <b> is", "a", "c", False, "[bold]d"), FactResult("e is", "e", "f", True))
    return EditReport(RESULTS, facts)


def test_it_is_the_table_and_then_a_line_a_failed_fact(report):
    lines = str(report).splitlines()
    assert lines[0] == "AlphaEdit + SPHERE on m, 2 edits"
    assert "│ efficacy                   │ 0.000 ± 0.000 │ 0.500 ± 0.500 │" in lines
    assert lines[-2].startswith("└")
    assert lines[-1] == "failed: 'a <b> is' -> 'c', but the model writes '[bold]d'"
    assert [fact.subject for fact in report.failed] == ["a"]
    assert (report.before["efficacy"], report.after["efficacy"]) == (0.0, 0.5)


def test_a_console_that_knows_few_signs_gets_others(report, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    sys.stdout.write(str(report))
    stream.flush()
    text = stream.buffer.getvalue().decode("ascii")
    assert "| efficacy" in text
    assert "0.500 +- 0.500 |" in text


def test_a_notebook_gets_it_escaped(report):
    assert report._repr_html_().startswith("<pre>AlphaEdit + SPHERE on m")
    assert "a &lt;b&gt; is" in report._repr_html_()
    assert repr(report) == "<EditReport: 2 edits, 1 failed; print it for the table>"
