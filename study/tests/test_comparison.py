"""The cells of the comparison read together."""

import json
import math

import pytest

from sphere_pl.errors import UserError
from sphere_pl.text.version import __version__
from study.comparison import VARIANTS, find, of_model, read_all, sphere_pairs
from study.families import RESULTS, cells_of, read_spec
from study.marks import settings_digest
from study.tests.made_families import make_result


def test_two_methods_are_compared_on_the_same_facts():
    first, second = make_result(written="++--"), make_result("memit_seq", written="+-++")
    assert second.against(first) == (4, 2, 1)
    assert second.held() == (3, 4)
    assert second.perplexity == pytest.approx(1.1)
    assert second.energy == -2e-5


def test_other_facts_another_model_and_a_run_that_broke_off_are_compared_with_none():
    first = make_result()
    assert make_result(edits=8, written="++--++--").against(first) is None
    assert make_result(model="gemma3_270m").against(first) is None
    assert make_result(written="").broke
    assert make_result(written="").against(first) is None


def test_pairs_differ_in_sphere_alone():
    plain, sphere = make_result(), make_result(variant="sphere")
    assert sphere_pairs([plain, sphere, make_result("memit"), make_result("memit", "sphere", written="")]) == [
        (plain, sphere)
    ]
    assert sphere.name == "AlphaEdit + SPHERE"


def test_results_of_a_model_are_told_apart_by_length():
    rows = [make_result(edits=8), make_result(), make_result("scr"), make_result(model="gemma3_270m")]
    found = of_model(rows, "smollm2_135m")
    assert {edits: len(each) for edits, each in found.items()} == {4: 2, 8: 1}
    assert find(found[4], "scr") is rows[2]
    assert find(found[8], "scr") is None


def test_a_model_is_shown_in_the_first_order_of_each_length():
    rows = [make_result(draw=3), make_result(draw=2), make_result(edits=8, draw=1)]
    assert of_model(rows, "smollm2_135m") == {4: [rows[1]], 8: [rows[2]]}


def test_a_score_of_nothing_is_a_score_and_one_that_is_missing_is_none():
    result = make_result(after={"a": 0.0, "b": None})
    assert result.after("a") == 0
    assert math.isnan(result.after("b"))
    assert math.isnan(result.after("c"))


def test_every_variant_of_the_specification_has_a_name():
    assert set(VARIANTS) == set(read_spec().variants)


@pytest.fixture
def keep(tmp_path):
    """Writes a result of the first cell of a stage."""
    spec = read_spec()

    def keep(stage, fingerprint="a", kinds=("written", "written_paraphrase", "own", "paraphrase", "neighbor")):
        key, cell = next((k, c) for k, c in cells_of(spec, stage).items() if k.model == "gemma3_270m")
        marks = {"spec": spec.version, "sphere_pl": __version__, "arguments": list(cell.arguments)}
        marks |= {"settings": settings_digest(cell.arguments), "fingerprint": fingerprint, "failed": None}
        (tmp_path / f"{key.name}.json").write_text(json.dumps({**marks, "outcomes": dict.fromkeys(kinds, "+")}))
        return key

    return keep


def test_a_model_that_changed_between_stages_is_refused_by_name(keep, tmp_path):
    keep("other_models")
    assert len(read_all(read_spec(), tmp_path)) == 1
    later = keep("main", "b")
    with pytest.raises(UserError, match=f"{later.name}.*another model"):
        read_all(read_spec(), tmp_path, ("other_models", "main"))


def test_a_result_that_does_not_say_what_became_of_each_fact_is_refused(keep, tmp_path):
    key = keep("other_models", kinds=["written"])
    with pytest.raises(UserError, match=f"{key.name}.*each fact"):
        read_all(read_spec(), tmp_path)


def test_every_committed_result_belongs_to_a_stage_that_the_page_tells_of():
    kept = {path.stem for path in RESULTS.glob("*.json")}
    assert kept == {each.key.name for each in read_all(read_spec())}
