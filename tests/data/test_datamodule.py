"""The stream: what is chosen, in which order, and what is refused."""

import json
import logging

import pytest

from sphere_pl.data.builtin import facts_path
from sphere_pl.data.datamodule import EditDataModule, EditLoader, FactList
from sphere_pl.data.request import EditRequest
from sphere_pl.errors import UserError


def capitals(count):
    return [{"prompt": "The capital of {} is", "subject": f"Land {i}", "target": f"City {i}"} for i in range(count)]


def test_the_built_in_facts_are_read_as_they_stand():
    data = EditDataModule(limit=None)
    data.setup("fit")
    raw = json.loads(facts_path().read_text(encoding="utf-8"))
    assert [request.case_id for request in data.requests] == [str(record["case_id"]) for record in raw]
    for request, record in zip(data.requests, raw, strict=True):
        rewrite = record["requested_rewrite"]
        assert request.prompt == rewrite["prompt"]
        assert request.target_true == rewrite["target_true"]["str"]
        assert list(request.neighbors) == record["neighborhood_prompts"]


def test_the_built_in_facts_raise_no_warning(caplog):
    EditDataModule(limit=None).setup("fit")
    assert not caplog.records


def test_offset_and_limit_cut_the_stream(load):
    assert [r.case_id for r in load("jsonl", capitals(9), offset=2, limit=3)] == ["2", "3", "4"]
    assert len(load("jsonl", capitals(9), limit=None)) == 9
    assert len(load("jsonl", capitals(9), offset=7, limit=100)) == 2
    with pytest.raises(UserError, match=r"--data.offset=9 leaves nothing of the 9 edits"):
        load("jsonl", capitals(9), offset=9)


def test_shuffling_comes_first_and_follows_the_seed(load):
    first = [r.case_id for r in load("jsonl", capitals(50), limit=10, shuffle_seed=1)]
    assert first == [r.case_id for r in load("jsonl", capitals(50), limit=10, shuffle_seed=1)]
    assert first != [r.case_id for r in load("jsonl", capitals(50), limit=10, shuffle_seed=2)]
    assert max(map(int, first)) > 10
    rest = [r.case_id for r in load("jsonl", capitals(50), offset=10, limit=None, shuffle_seed=1)]
    assert sorted(map(int, first + rest)) == list(range(50))


def test_conflicts_are_sought_in_the_chosen_part_of_the_stream(load, caplog):
    records = [*capitals(3), capitals(1)[0] | {"target": "Rome"}]
    assert len(load("jsonl", records, limit=3)) == 3
    assert not caplog.records
    assert [r.target_new for r in load("jsonl", records, conflicts="keep_last")] == ["City 1", "City 2", "Rome"]
    with pytest.raises(UserError, match=r"edits.jsonl, line 1 says .* -> 'City 0', .*line 4 says .* -> 'Rome'"):
        load("jsonl", records, conflicts="refuse")


def test_records_that_cannot_be_edited_are_refused_or_skipped_and_counted(load, caplog):
    records = capitals(4)
    del records[1]["target"]
    records[2]["prompt"] = "The capital is"
    with pytest.raises(UserError, match=r"edits.jsonl, line 2: the field 'target' is missing"):
        load("jsonl", records)
    with caplog.at_level(logging.WARNING):
        assert [r.case_id for r in load("jsonl", records, invalid="skip")] == ["0", "3"]
    assert "2 records cannot be edited and are left out. The first: " in caplog.text
    with pytest.raises(UserError, match=r"There is no record to edit in .*edits.jsonl"):
        load("jsonl", records[1:3], invalid="skip")


def test_a_file_of_ones_own_is_read_whole_and_a_cut_is_said(tmp_path):
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, capitals(150))))

    def extent(*source, **settings):
        data = EditDataModule(*source, **settings)
        data.setup("fit")
        return data.extent

    mine = ("jsonl", str(tmp_path / "mine.jsonl"))
    assert extent(*mine) == "150 edits"
    assert extent(*mine, limit=100) == "100 of 150 edits (--data.limit)"
    assert extent(*mine, limit=10, offset=145) == "5 of 150 edits (--data.offset)"
    assert extent(*mine, limit=10, offset=5) == "10 of 150 edits (--data.offset, --data.limit)"
    assert extent() == "100 of 812 edits (--data.limit)"
    assert extent(limit=None) == "812 edits"


def test_duplicate_case_ids_stay_two_records(load, caplog):
    first, second = load("jsonl", [record | {"id": 7} for record in capitals(2)])
    assert (first.subject, second.subject) == ("Land 0", "Land 1")
    assert "'7' (2 times)" in caplog.text


def test_csv_and_a_folder(tmp_path):
    lines = ["prompt,subject,target,paraphrases", '{} is in,Rome,Spain,"[""Rome lies in"", ""One finds Rome in""]"']
    (tmp_path / "mine.csv").write_text("\n".join([*lines, "{} is in,Oslo,Peru,"]))
    data = EditDataModule("csv", str(tmp_path))
    data.setup("fit")
    first, second = data.requests
    assert first.paraphrases == ("Rome lies in", "One finds Rome in")
    assert second.paraphrases == ()


@pytest.mark.parametrize(("name", "content"), [("a.csv", "prompt,subject,target\n"), ("a.json", "[]")])
def test_a_file_without_records_is_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"There is no record to edit in .*{name}"):
        EditDataModule("jsonl", str(tmp_path / name)).setup("fit")


def test_a_hub_id_goes_to_the_hub(monkeypatch):
    rows = [{"prompt": "{} is in", "subject": "Rome", "target": "Spain", "paraphrases": None}]
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows)
    data = EditDataModule("jsonl", "someone/facts")
    data.setup("fit")
    assert data.requests[0].source == "someone/facts, row 0"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "fact"}, "--data.name='fact' is unknown. Known: facts, counterfact, zsre, knowedit"),
        ({"name": "zsre"}, "--data.name=zsre needs --data.path=<file, folder or hub data set>"),
        ({"file": "x.json"}, "--data.file='x.json' names a file of a folder or a data set: add --data.path"),
        ({"columns": {"a": "promt"}}, "maps 'a' to 'promt', which is no field. Did you mean prompt"),
        ({"columns": {"a": "prompt", "b": "prompt"}}, "maps two columns to 'prompt'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"limit": 0}, "limit=0"),
        ({"offset": -1}, "offset=-1"),
        ({"conflicts": "ignore"}, "--data.conflicts='ignore' is unknown. Known: ask, report, refuse, keep_last"),
        ({"invalid": "ignore"}, "--data.invalid='ignore' is unknown. Known: refuse, skip"),
    ],
)
def test_wrong_settings_are_refused_at_once(settings, words):
    with pytest.raises(UserError, match=words):
        EditDataModule(**settings)


def test_records_of_equal_id_stay_apart_in_the_batches(load):
    requests = load("jsonl", [record | {"id": 7} for record in capitals(5)])
    batches = list(EditLoader(requests, batch_size=2))
    assert [batch.start for batch in batches] == [0, 2, 4]
    assert [r.subject for batch in batches for r in batch.requests] == [f"Land {i}" for i in range(5)]


def test_facts_in_memory_are_chosen_and_checked_as_those_of_a_file():
    facts = [*capitals(4), EditRequest("mine", "{} is", "Land 9", "x"), {**capitals(1)[0], "aliases": ("a", "b")}]
    data = FactList(facts, name="jsonl", path="facts", offset=3, limit=3)
    data.setup("fit")
    assert [request.case_id for request in data.requests] == ["3", "mine", "5"]
    assert [request.source for request in data.requests] == ["facts[3]", "facts[4]", "facts[5]"]
    assert data.requests[2].aliases == ("a", "b")
    assert (data.extent, len(data.everything())) == ("3 of 6 edits (--data.offset)", 6)
    with pytest.raises(UserError, match=r"contradicted by a later one.*facts\[0\]"):
        FactList([*capitals(1), {**capitals(1)[0], "target": "y"}], name="jsonl", path="f", conflicts="refuse").setup(
            "fit"
        )
