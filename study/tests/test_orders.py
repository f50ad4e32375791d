"""Two methods over several orders of the facts."""

import pytest

from study.orders import orders_of, orders_table, orders_words
from study.paired import Exchanged
from study.tests.made_families import make_result


def results(first, second):
    """Runs of AlphaEdit and of MEMIT with memory, an order for each string."""
    return [
        make_result(method, written=signs, draw=draw)
        for method, orders in (("alphaedit", first), ("memit_seq", second))
        for draw, signs in enumerate(orders, 1)
    ]


def test_differences_are_those_of_each_order_and_their_facts_add_up():
    (found,) = orders_of(results(["++--", "+++-"], ["+++-", "-+++"]), "alphaedit", "memit_seq")
    assert found.each("written") == pytest.approx([0.25, 0.0])
    assert found.over("written").difference == pytest.approx(0.125)
    assert found.over("written").error == pytest.approx(0.125)
    assert found.pooled("written") == Exchanged(8, 2, 1)


def test_only_orders_that_both_methods_ended_count():
    rows = results(["++", "+-", "--"], ["++", "", "-+"])
    (found,) = orders_of(rows, "alphaedit", "memit_seq")
    assert [each.key.draw for each in found.first] == [1, 3]
    assert not orders_of(results(["++"], ["++"]), "alphaedit", "memit_seq")
    assert not orders_of([*results(["++", "+-"], [])], "alphaedit", "memit_seq")


def test_the_table_has_each_order_their_mean_and_all_facts():
    found = orders_of(results(["+" * 8 + "-" * 8] * 2, ["+" * 16] * 2), "alphaedit", "memit_seq")
    assert orders_table(found)[2] == (
        "| SmolLM2-135M-Instruct | 4 | MEMIT with memory minus AlphaEdit | holds | +0.500, +0.500 "
        "| +0.500 ± 0.000, p 0.50 | **+0.50 ± 0.09**, p < 0.001 |"
    )
    assert orders_table([]) == []


def test_the_words_say_how_many_orders_there_are_and_what_they_tell_apart():
    assert orders_words([make_result()], []).startswith("One order")
    rows = results(["+" * 8 + "-" * 8] * 3, ["+" * 16, "+" * 8 + "-" * 8, "+" * 8 + "-" * 8])
    said = orders_words(rows, orders_of(rows, "alphaedit", "memit_seq"))
    assert said.startswith("Of 1 comparison up to 3 orders")
    assert "told apart fact by fact: holds, in other words, others as before; 3 orders alone" in said
    assert "below p 0.25" in said


def test_two_orders_that_happen_to_agree_tell_nothing_apart():
    rows = results(["++--", "+-+-"], ["+++-", "+++-"])
    said = orders_words(rows, orders_of(rows, "alphaedit", "memit_seq"))
    assert "none is told apart fact by fact; 2 orders alone tell nothing apart below p 0.5" in said
