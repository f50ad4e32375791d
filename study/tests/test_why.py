from study.runs import pairs
from study.tests.made import make_pairs, make_run
from study.why import geometry_table, share_runs, share_table, sides, variant_table

GEOMETRY = {
    "ratio": 0.5,
    "threshold": 0.02,
    "layers": [
        {
            "layer": 4,
            "rank": 100,
            "principal_chance": 0.1,
            "keys_in_principal": 0.12,
            "null_keys_in_principal": 0.09,
            "principal_in_null": 0.6,
            "null_chance": 0.8,
        }
    ],
}


def test_the_principal_directions_are_set_against_chance():
    text = "\n".join(geometry_table(GEOMETRY))
    assert "| 4 | 100 | 10.0% | 12.0% | 9.0% | 60.0% | 80.0% |" in text
    assert "have 1.20 to 1.20 times chance in the principal directions, and the null space holds 0.75 to 0.75" in text


def test_what_sphere_takes_is_its_strength_times_the_share():
    (row,) = (line for line in share_table([make_run("counterfact-memit-plain-draw1-200", [0.9, 0.8], share=0.18)])
              if line.startswith("| memit"))  # fmt: skip
    assert row.endswith("| 17.3% |")  # (2α - α²) 0.18 at α = 0.8
    assert "2.00, 2.00 → 2.00" in row


def test_the_longest_run_of_a_method_is_the_one_that_is_drawn():
    short = make_run("counterfact-memit-plain-draw1-200", [0.9, 0.8])
    long = make_run("counterfact-memit-plain-draw2-300", [0.9, 0.8, 0.7])
    assert share_runs([long, short]) == [long]


def test_every_run_with_sphere_is_set_against_the_one_without():
    found = pairs(make_pairs([0.9, 0.5], [0.9, 0.9], draws=(1,)), None)
    text = "\n".join(variant_table(found))
    assert "| alphaedit current, draw 1 | 200 | **+40.0 points [+31.9, +48.1]** | +0.0 points [" in text


def test_runs_are_told_apart_by_their_intervals():
    runs = make_pairs([0.9, 0.5], [0.9, 0.9], "memit", (1,)) + make_pairs([0.9, 0.9], [0.9, 0.5], "rome", (1,))
    found = pairs(runs + make_pairs([0.9, 0.5], [0.9, 0.52], "rect", (1,)), None)
    assert sides(found)[2:] == [
        "- Higher with SPHERE beyond doubt (1): memit current, draw 1.",
        "- Lower (1): rome current, draw 1.",
        "- Not told apart (1): rect current, draw 1.",
    ]
    assert variant_table([]) == ["No pair of runs is finished."]
