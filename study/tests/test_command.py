import json

import pytest

from study import command
from study.cells import cell


@pytest.fixture
def source(tmp_path):
    records = [{"case_id": i, "paraphrase_prompts": ["a", "b"], "neighborhood_prompts": ["c", "d"]} for i in range(900)]
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records))
    return path


def test_no_draw_holds_a_record_of_the_tuning(source):
    ids = {draw: [record["case_id"] for record in command.records(source, draw)] for draw in (0, 1, 2)}
    assert len(ids[0]) == command.TUNING
    assert not set(ids[0]) & set(ids[1])
    assert sorted(ids[1]) == sorted(ids[2])
    assert ids[1] != ids[2]
    assert ids[1] == [record["case_id"] for record in command.records(source, 1)]


def test_one_prompt_of_each_kind_is_kept(source):
    record = command.records(source, 1)[0]
    assert record["paraphrase_prompts"] == ["a"]
    assert record["neighborhood_prompts"] == ["c"]


def test_the_estimate_takes_no_time_from_a_busy_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    for draw, seconds, average in ((1, 400.0, 1.5), (2, 9000.0, 8.0)):
        found = {"edits": 800, "seconds": seconds, "load": {"average": average, "cores": 2}}
        (tmp_path / f"counterfact-memit-plain-draw{draw}-800.json").write_text(json.dumps(found))
    costs = command.measured_costs([cell("memit", draw=3), cell("ft")])
    assert costs == {"counterfact-memit-plain-draw3-800": 0.5}
