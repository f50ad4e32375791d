"""What `fit` is given: callbacks that stand there twice, and options that would change nothing."""

import pytest

from sphere_pl.commands.fit_arguments import check_used, without_repeats
from sphere_pl.errors import UserError


def test_a_callback_given_again_alike_counts_once_and_with_other_settings_twice():
    first, other = {"class_path": "RECT"}, {"class_path": "RECT", "init_args": {"share": 0.2}}
    assert without_repeats([first, other, dict(first)]) == [first, other]
    assert without_repeats(None) is None


def test_an_option_of_targets_is_refused_with_a_method_that_has_none():
    with pytest.raises(UserError, match=r"`--model.targets.steps=3` would change nothing.*method/alphaedit"):
        check_used("UltraEdit", ["fit", "--model.targets.steps=3", "--model.targets.max_tokens=9"])


@pytest.mark.parametrize("option", ["--model.targets.max_tokens=9", "--model.targets.anchor", "--model.layers=[3]"])
def test_an_option_that_is_used_or_refused_elsewhere_passes(option):
    check_used("UltraEdit", ["fit", option])
