from study.claims import ABOVE, energy_ratios
from study.energy import energy_section, held_and_kept
from study.page import RESULTS
from study.runs import load, share_ratios
from study.tests.made import make_pairs

STEADY = [0.0001 * (i + 1) for i in range(8)]  # a tenth of what the partners without SPHERE have


def test_pairs_in_which_the_energy_is_held_are_counted_by_what_became_of_the_edits():
    runs = make_pairs([0.8] * 8, [0.8] * 8, energy=STEADY)
    runs += make_pairs([0.2] * 8, [0.8] * 8, "memit", draws=(1, 2), energy=STEADY)
    runs += make_pairs([0.8] * 8, [0.2] * 8, "rect", draws=(1,), energy=STEADY)
    runs += make_pairs([0.8] * 8, [0.2] * 8, "ft", draws=(1,))  # its energy is not held
    _, words = held_and_kept(runs)
    assert "less in 6 of 7 pairs of runs; of these, efficacy is higher with SPHERE in 2, lower in 1 and not" in words
    assert "not told apart in 3." in words


def test_without_a_pair_that_holds_the_energy_nothing_is_said():
    assert held_and_kept(make_pairs([0.8] * 8, [0.8] * 8)) == []


def test_a_method_that_hardly_moves_the_energy_says_nothing_about_it():
    assert energy_ratios(make_pairs([0.8] * 8, [0.8] * 8, "prune")) == []
    runs = make_pairs([0.8] * 8, [0.8] * 8, draws=(1,))
    runs[0].found["batches"]["energy/change"] = [1e-6] * 8
    assert energy_ratios(runs) == []


def test_every_run_has_its_coefficients():
    text = energy_section(make_pairs([0.9, 0.8, 0.85, 0.7, 0.6, 0.65, 0.5, 0.4], [0.8] * 8, draws=(1,)))
    assert "| alphaedit, draw 1 | 8 | " in text
    assert "| alphaedit current, draw 1 | 8 |  |  |" in text  # an efficacy that never changes


def test_past_alphaedits_collapse_sphere_holds_the_energy_and_not_the_edits():
    """The page says so in words, where it tells how to read it."""
    far = [run for run in load(RESULTS) if run.key.settings == "counterfact-alphaedit-ridge10-far"]
    ((pair, ratio),) = energy_ratios(far)
    assert max(share_ratios(pair.plain)) > ABOVE
    assert ratio < 0
    assert pair.difference("val/efficacy").side <= 0
