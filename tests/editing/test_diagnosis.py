"""What is said of second moments before the first edit."""

import torch

from sphere_pl.editing.diagnosis import condition_estimate, diagnose, report_statistics, tokens_line


def test_statistics_that_editing_cannot_rest_on_are_reported(caplog):
    healthy = {
        "a": diagnose({"basis": torch.zeros(10, 5)}, None),
        "b": diagnose({}, torch.eye(3)),
        "c": diagnose({}, None),
    }
    assert healthy == {"a": {"null_space_share": 0.5}, "b": {"condition": 1.0}, "c": {}}
    report_statistics(healthy)
    assert not caplog.records
    bad = {
        name: diagnose({"basis": torch.zeros(size)}, None)
        for name, size in {"wide": (9, 9), "narrow": (999, 1)}.items()
    }
    bad["singular"] = diagnose({}, torch.ones(3, 3))
    report_statistics(bad)
    assert [record.args[0] for record in caplog.records] == ["wide", "narrow", "singular"]


def test_a_null_space_that_twice_the_text_moves_is_reported_and_a_settled_one_is_not(caplog):
    spectrum = torch.linspace(0, 1, 101)[:100]
    settled, moved = (diagnose({"basis": torch.zeros(100, m)}, None, spectrum, 0.5) for m in (45, 44))
    assert settled == {"null_space_share": 0.45, "null_space_share_half": 0.5}
    report_statistics({"settled": settled})
    assert not caplog.records
    report_statistics({"moved": moved})
    assert caplog.messages == [
        "moved: twice the text moved the null space from 50.0 % of key space to 44.0 %: it still depends on how much "
        "text there is. Use more: --model.statistics.tokens."
    ]


def test_the_estimate_bounds_the_condition_number_from_below():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    moment = basis @ torch.diag(torch.logspace(-6, 0, 8, dtype=torch.float64)) @ basis.T
    assert 1e3 < condition_estimate(moment) <= 1.001e6


def test_tokens_and_rank_are_said_in_one_line_and_directions_that_no_token_saw_are_a_warning(caplog):
    basis = {"basis": torch.zeros(10, 4)}
    found = {str(n): diagnose(basis, torch.eye(10), None, 0.5, n) for n in (2000, 3000)}
    report_statistics(found)
    assert not caplog.messages
    assert tokens_line(found, "prose") == (
        "Second moments: 2,000 to 3,000 tokens of prose, rank at most 10 of 10; the null space is 40 % of key space."
    )
    found = {"a": diagnose({}, torch.eye(10), tokens=7)}
    report_statistics(found)
    assert tokens_line(found) == "Second moments: 7 tokens of text, rank at most 7 of 10."
    assert "3 directions or more were never seen" in caplog.text
    assert tokens_line({"a": {"condition": 1.0}}) == ""
