"""Edits that are named to be left out of a run, and runs that no edit can be left out of."""

import pytest

from sphere_pl.errors import UserError
from sphere_pl.history.left_out import check_without, kept_rows
from sphere_pl.history.saved import SavedRun


def check(run, names, last=None):
    saved = SavedRun.open(run.folder)
    return check_without(saved, names, last or len(saved.history.entries))


def test_a_method_that_optimises_weights_refuses_and_says_what_to_do(fit):
    with pytest.raises(UserError, match=r"FT.*no keys and residuals.*run `fit` again"):
        check(fit(method="FT"), ["0"])


def test_a_log_of_changes_alone_refuses(fit):
    with pytest.raises(UserError, match="--edit_log changes"):
        check(fit(keep="changes"), ["0"])


def test_an_unknown_case_is_named_with_known_ones(fit):
    with pytest.raises(UserError, match=r"'nine': .*0 \(France\), 1 \(Rome\), 2"):
        check(fit(), ["0", "nine"])


def test_an_edit_is_named_by_its_id_or_by_its_subject_in_any_case_and_counts_once(fit):
    run = fit()
    assert check(run, ["1", "france", "ROME"]) == ["1", "0"]


def test_only_edits_up_to_the_last_entry_can_be_named(fit):
    run = fit()
    (batch, *_) = SavedRun.open(run.folder).history.entries
    after = len(batch.case_ids)
    with pytest.raises(UserError, match=f"'{after}': no edit"):
        check(run, [str(after)], last=1)


def test_the_rows_of_edits_that_stay_keep_their_order(fit):
    (batch, *_) = SavedRun.open(fit().folder).history.entries
    assert kept_rows(batch, frozenset(batch.case_ids[:1])).tolist() == list(range(1, len(batch.case_ids)))
