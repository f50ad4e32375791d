from study.markup import LONG, folded


def test_few_lines_stay_as_they_are():
    lines = ["- a"] * LONG
    assert folded("points", lines) == lines


def test_many_lines_open_with_a_click():
    lines = ["- a"] * (LONG + 1)
    assert folded("points", lines) == ["<details>", "<summary>points</summary>", "", *lines, "", "</details>"]
    assert folded("points", ["- a"], at_most=0)[1] == "<summary>points</summary>"
