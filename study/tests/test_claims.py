import math

import pytest

from study.claims import DOES_NOT, HOLDS, IN_PART, OPEN, verdicts
from study.runs import Run, averaged, pairs
from study.tests.made import make_pairs, make_run


def words(runs):
    return {verdict.claim.split(",")[0]: verdict.word for verdict in verdicts(runs)}


COLLAPSE, INTERFERE, FOLLOW, STEADY, ABILITY, BETTER, LASTS, PLUG = (
    "Sequential editing without SPHERE collapses the model.",
    "Updates of the usual methods interfere with the principal directions of the weights.",
    "Fluctuations of the energy go with the loss of performance.",
    "SPHERE holds the hyperspherical energy.",
    "SPHERE keeps general ability.",
    "SPHERE outperforms AlphaEdit",
    "With SPHERE a method lasts for more edits.",
    "As a plug-in SPHERE improves other methods",
)


def test_nothing_can_be_told_from_nothing():
    assert set(words([]).values()) == {OPEN}


def test_collapse_holds_when_a_plain_run_has_collapsed():
    assert words([make_run("counterfact-memit-plain-draw1-200", [0.9, 0.5])])[COLLAPSE] == HOLDS
    assert words([make_run("counterfact-memit-plain-draw1-200", [0.9, 0.7])])[COLLAPSE] == OPEN


@pytest.mark.parametrize(("share", "word"), [(0.2, HOLDS), (0.09, DOES_NOT)])
def test_interference_is_measured_against_chance(share, word):
    runs = [make_run(f"counterfact-{name}-plain-draw1-200", [0.9, 0.7], share=share) for name in ("memit", "alphaedit")]
    assert words(runs)[INTERFERE] == word
    assert words(runs[:1])[INTERFERE] == OPEN


def test_the_verdict_says_in_a_sentence_what_decided_it():
    runs = [
        make_run("counterfact-memit-plain-draw1-200", [0.9, 0.5], share=0.2),
        make_run("counterfact-rome-plain-draw1-200", [0.9, 0.7], share=0.09),
        *make_pairs([0.9, 0.8], [0.9, 0.8], energy=[0.0005, 0.001]),
    ]
    measured = {verdict.claim: verdict.measured for verdict in verdicts(runs)}
    assert measured[COLLAPSE].endswith("1 of 5 runs fall below 60%: memit.")
    assert measured[INTERFERE].endswith("Every layer above 1.25: memit. No layer above 1.25: rome; alphaedit.")
    assert measured[STEADY].endswith(
        "Lower in 3 of 3 pairs; methods with 3 draws or more: alphaedit current -50.0 % [-50.0, -50.0]."
    )


def wave(n=24):
    """An energy that goes up and down."""
    turns = [(-1) ** (i // 2) * (1 + i % 5) for i in range(n)]
    return [0.1 + 0.001 * sum(turns[: i + 1]) for i in range(n)]


def test_energy_and_efficacy_that_move_together_are_seen():
    energy = wave()
    efficacy = [0.5 - 10 * (value - 0.1) for value in energy]
    runs = [make_run(f"counterfact-memit-plain-draw{i}-2400", efficacy, energy) for i in (1, 2, 3)]
    assert words(runs)[FOLLOW] == HOLDS
    assert words(runs[:2])[FOLLOW] == OPEN


def test_energy_and_distance_to_the_unedited_model_are_compared_batch_by_batch():
    energy = wave()
    runs = [make_run(f"counterfact-memit-plain-draw{i}-2400", [0.9] * 24, energy) for i in (1, 2, 3)]
    for run in runs:
        run.found["batches"]["drift/kl"] = [2 * value for value in energy]
    assert words(runs)[FOLLOW] == HOLDS
    figures = next(verdict.figures for verdict in verdicts(runs) if verdict.claim == FOLLOW)
    assert list(figures) == [
        "memit, distance to the unedited model: +1.00 [+1.00, +1.00], mean of 3 draws of 23 differences"
    ]


def test_energy_and_efficacy_that_move_apart_are_seen_if_their_draws_agree():
    def noise(draw, n=200):
        return [0.5 + 0.3 * math.sin(7.3 * draw * i * i) for i in range(n)]

    long = [make_run(f"counterfact-memit-plain-draw{i}-2400", noise(i), wave(200)) for i in (1, 2, 3)]
    short = [make_run(f"counterfact-memit-plain-draw{i}-800", noise(i, 6), wave(6)) for i in (1, 2, 3)]
    assert words(long)[FOLLOW] == DOES_NOT
    assert words(short)[FOLLOW] == OPEN


def make_methods(plain, sphere, methods=("memit", "ft", "rome"), draws=(1, 2), **more):
    return [run for name in methods for run in make_pairs(plain, sphere, name, draws, **more)]


def test_a_steadier_energy_must_be_seen_in_every_pair_or_every_draw_of_a_method():
    def both(first, second, draws=(1, 2, 3)):
        runs = make_methods([0.9, 0.8], [0.9, 0.8], ("memit",), draws, energy=first)
        return words(runs + make_methods([0.9, 0.8], [0.9, 0.8], ("rome",), draws, energy=second))[STEADY]

    steady, restless = [0.0005, 0.001], [0.002, -0.004]
    assert both(steady, steady) == HOLDS
    assert both(steady, restless) == IN_PART
    assert both(restless, restless) == DOES_NOT
    assert both(steady, restless, draws=(1, 2)) == OPEN
    assert words(make_methods([0.9, 0.8], [0.9, 0.8], ("memit",), energy=steady))[STEADY] == OPEN
    assert both([0.0, 1e-7], [0.0, -1e-7]) == HOLDS  # held entirely: what counts is that the method moves it


def test_ability_is_a_lower_perplexity():
    assert words(make_pairs([0.9, 0.8], [0.9, 0.8], perplexity=[49.0, 49.0]))[ABILITY] == HOLDS
    assert words(make_pairs([0.9, 0.8], [0.9, 0.8], perplexity=[51.0, 51.0]))[ABILITY] == DOES_NOT


def test_a_mean_over_draws_has_the_error_that_they_show():
    assert averaged([1.0, 3.0]) == pytest.approx((2.0, 1.0, 1))  # 2 apart: sd √2, error of the mean 1
    assert averaged([10.0, 10.0, 10.0]) == pytest.approx((10.0, 0.0, 2))
    assert averaged([5.0]) == pytest.approx((5.0, math.inf, 1))


def test_each_method_has_the_spread_of_its_own_draws():
    runs = [
        run
        for draw, perplexity in ((1, 49.0), (2, 51.0))
        for run in make_pairs([0.9, 0.8], [0.9, 0.8], "memit", (draw,), perplexity=[perplexity] * 2)
    ]
    runs += make_pairs([0.9, 0.8], [0.9, 0.8], "rome", (1,), perplexity=[25.0] * 2)
    figures = next(verdict.figures for verdict in verdicts(runs) if verdict.claim == ABILITY)
    assert figures[0].startswith("memit current: -0.0 % [-2")
    assert figures[1] == "rome current: -50.0 %, one draw"


def test_abilities_are_told_before_and_after():
    runs = make_pairs([0.9, 0.8], [0.9, 0.8], draws=(1,))
    for run, end in zip(runs, (0.5, 0.6), strict=True):
        run.found["batches"]["abilities/sst2"] = [0.8, end]
    figures = next(verdict.figures for verdict in verdicts(runs) if verdict.claim == ABILITY)
    assert "alphaedit current, draw 1: sst2 0.800 before, 0.500 without and 0.600 with SPHERE" in figures


def test_a_validation_of_a_sample_counts_the_sample():
    plain, sphere = make_pairs([0.9, 0.8, 0.7], [0.9, 0.8, 0.7], draws=(1,))
    for run in (plain, sphere):
        run.found["arguments"] = ["--model.evaluation.validation_records=150"]
    assert [plain.scored(edits) for edits in (100, 200, 300)] == [100, 150, 300]
    shorter = Run(
        sphere.key, {**sphere.found, "validations": {n: v[:2] for n, v in sphere.found["validations"].items()}}
    )
    (pair,) = pairs([plain, shorter])
    assert pair.difference("val/efficacy").error == pytest.approx(math.sqrt(2 * 0.8 * 0.2 / 150))


def test_a_gain_over_alphaedit_is_held_against_zero_and_the_papers_figure():
    long = [0.9] * 7
    assert words(make_pairs([*long, 0.5], [*long, 0.9], generalization=0.9))[BETTER] == HOLDS
    assert words(make_pairs([*long, 0.5], [*long, 0.5]))[BETTER] == DOES_NOT
    assert words(make_pairs([*long, 0.7], [*long, 0.9], generalization=0.9))[BETTER] == OPEN
    assert words(make_pairs([*long, 0.5], [*long, 0.9], method="memit"))[BETTER] == OPEN
    assert words(make_pairs([0.9] * 16, [0.9] * 16))[BETTER] == DOES_NOT  # no collapse, but the paper's scale
    assert words(make_pairs([0.9] * 15, [0.9] * 15))[BETTER] == OPEN


def test_lasting_longer_is_a_later_collapse():
    later = make_methods([0.9, 0.5, 0.4], [0.9, 0.7, 0.5])
    assert words(later)[LASTS] == HOLDS
    assert words(make_pairs([0.9, 0.5, 0.4], [0.9, 0.7, 0.5]))[LASTS] == IN_PART  # one method
    assert words(make_pairs([0.9, 0.5, 0.4], [0.9, 0.5, 0.4]))[LASTS] == DOES_NOT
    assert words(make_pairs([0.9, 0.8, 0.7], [0.9, 0.8, 0.7]))[LASTS] == OPEN
    mixed = make_pairs([0.9, 0.5], [0.9, 0.5], draws=(1, 2)) + make_pairs([0.9, 0.5], [0.9, 0.7], draws=(3,))
    assert words(mixed)[LASTS] == IN_PART


def test_the_plug_in_is_judged_from_three_methods_on():
    better = [
        run for name in ("memit", "ft", "rect") for run in make_pairs([0.4] * 8, [0.8] * 8, method=name, draws=(1,))
    ]
    same = [run for name in ("memit", "ft", "rect") for run in make_pairs([0.8] * 8, [0.8] * 8, name, draws=(1,))]
    assert words(better)[PLUG] == HOLDS
    assert words(same)[PLUG] == DOES_NOT
    assert words(better[:4])[PLUG] == OPEN


def test_one_method_that_gains_a_great_deal_does_not_speak_for_the_others():
    gains = make_pairs([0.2] * 8, [0.8] * 8, method="rome", draws=(1,))
    same = [run for name in ("memit", "ft") for run in make_pairs([0.8] * 8, [0.8] * 8, name, draws=(1,))]
    assert words([*gains, *same])[PLUG] == IN_PART
