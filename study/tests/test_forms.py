"""Edits that generalize: which records each cell learns, and its table."""

import json
from pathlib import Path

import pytest

from sphere_pl.errors import UserError
from sphere_pl.text.version import __version__
from study import forms
from study.forms_table import NAMES, forms_section, in_short, read_forms
from study.marks import settings_digest

RECORD = {
    "requested_rewrite": {
        "prompt": "{} plays the",
        "subject": "Miles Davis",
        "target_new": {"str": "violin"},
        "target_true": {"str": "trumpet"},
    },
    "paraphrase_prompts": ["Miles Davis performs on the", "The instrument of Miles Davis is the"],
    "neighborhood_prompts": ["John Coltrane plays the", "Bill Evans plays the", "Art Blakey plays the"],
}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "counterfact.json"
    unable = {**RECORD, "paraphrase_prompts": ["He plays the", "Miles Davis is at the"]}
    path.write_text(json.dumps([RECORD, unable]))
    return path


@pytest.mark.parametrize("kind", ["alone", "wording", "questions", "both"])
def test_the_paraphrase_that_is_asked_is_never_learnt(source, kind):
    (found,) = forms.records(source, kind)  # a paraphrase without the subject cannot be learnt
    assert found["paraphrases"] == ["The instrument of Miles Davis is the"]
    assert not {*found["paraphrases"]} & {*found.get("wordings", ())}
    assert len(found.get("wordings", ())) == {"alone": 0, "wording": 1, "questions": 2, "both": 3}[kind]
    assert all("Miles Davis" in wording for wording in found.get("wordings", ()))


def test_all_cells_edit_the_same_facts_with_the_same_settings():
    arguments = [set(cell.arguments) for cell in forms.cells().values()]
    assert all(set(forms.COMMON) <= each for each in arguments)
    assert {*NAMES} == {*forms.CELLS}
    assert len({(*cell.arguments, forms.CELLS[name][1]) for name, cell in forms.cells().items()}) == len(forms.CELLS)


def result(name, signs, **more):
    kinds = dict.fromkeys(("written", "written_paraphrase", "own", "paraphrase", "neighbor"), signs)
    cell = forms.cells()[name]
    marks = {"spec": forms.VERSION, "sphere_pl": __version__, "arguments": list(cell.arguments), "fingerprint": "a"}
    marks |= {"settings": settings_digest(cell.arguments), "failed": None}
    return {**marks, "outcomes": kinds, "after": {"chat/efficacy": 0.25}, **more}


def test_every_form_is_compared_with_the_default_on_the_same_facts():
    found = {"contexts2": result("contexts2", "+" * 10 + "-" * 30), "wording": result("wording", "+" * 40)}
    text = forms_section(found)
    usual, wording = [line for line in text.splitlines() if line.startswith("| two c") or line.startswith("| a second")]
    assert "Not run: two forms of a question, the chat form, no contexts, all of these." in text
    assert usual == "| two contexts, the default | 0.25 ± 0.07 | 0.25 ± 0.07 |  | 0.25 ± 0.07 | 0.25 |"
    assert "| 1.00 ± 0.00 | **+0.75 ± 0.07**, p < 0.001 |" in wording
    assert forms_section({}) == ""
    assert "25%, and 100% where one other wording" in in_short(found)
    assert "chat" not in in_short(found)
    found["chat"] = result("chat", "+" * 20 + "-" * 20, after={"chat/efficacy": 0.75})
    said = in_short(found).splitlines()[1]
    assert "25% of them: they were edited as plain text. Edited in both (`--data.chat both`) 75% hold" in said
    assert said.endswith("in a chat and 50% as plain text, where 25% did.")
    assert in_short({}) == ""


def test_a_cell_of_other_settings_is_refused_by_name(tmp_path):
    (tmp_path / "chat.json").write_text(json.dumps(result("chat", "+")))
    assert list(read_forms(tmp_path)) == ["chat"]
    (tmp_path / "chat.json").write_text(json.dumps(result("chat", "+", settings="others")))
    with pytest.raises(UserError, match=r"chat\.json has settings"):
        read_forms(tmp_path)


def test_every_committed_result_of_a_form_belongs_to_a_cell():
    names = {path.stem for path in Path(forms.RESULTS).glob("*.json")}
    assert names == {*read_forms()}
