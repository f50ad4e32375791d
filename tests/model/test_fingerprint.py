"""A model is known by its weights."""

from sphere_pl.model.fingerprint import fingerprint


def test_the_fingerprint_sees_a_change_of_any_matrix(tiny_lm):
    lm = tiny_lm()
    before = fingerprint(lm)
    assert before == fingerprint(tiny_lm())
    lm.sites([3])[0].stored.add_(0.5)
    assert fingerprint(lm) != before
