"""Files of each data set load whole: made here in its schema, and the real ones where they lie beside the checkout."""

import json
import logging

import pytest

from sphere_pl.data.datamodule import EditDataModule
from sphere_pl.data.files import read_records

FILES = [
    ("counterfact", "built/counterfact_rebuilt.json", 9690),
    ("easyedit", "counterfact/counterfact-edit.json", 10_000),
    ("easyedit", "counterfact/counterfact-val.json", 1919),
    ("zsre", "built/zsre_official.json", 1037),
    ("zsre", "zsre/zsre_mend_eval_portability_gpt4.json", 1037),
    ("knowedit", "zsre/benchmark_ZsRE_ZsRE-test-all_seq.json", 1068),
    ("mquake", "other/MQuAKE-hard.json", 4 * 429),
]


def read(name, path):
    data = EditDataModule(name, str(path), limit=None)
    data.setup("fit")
    return data.requests


MADE = 60
# What differs from record to record; a record of MQuAKE is several edits.
SUBJECTS = {"counterfact": "Danielle Darrieux", "zsre": "Watts Humphrey", "knowedit": "Leo Arons",
            "easyedit": "Danielle Darrieux", "mquake": "Hey Jude", "wikibigedit": "Antti Hirvonen",
            "jsonl": "France", "known": "Vinson Massif"}  # fmt: skip
EDITS = {"mquake": 2}


@pytest.fixture
def made(schemas, tmp_path):
    """Write a file of many records of a data set; returns its path."""

    def write(name):
        subject, records = SUBJECTS[name], []
        for number in range(MADE):
            text = json.dumps(schemas(name), ensure_ascii=False).replace(subject, f"{subject} {number}’s Ä")
            record = json.loads(text)
            records.append(record | {key: number for key in ("case_id", "known_id") if key in record})
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_file_of_every_data_set_loads_whole(made, name):
    check_whole(read(name, made(name)), MADE * EDITS.get(name, 1))


def test_every_list_of_every_record_is_there(made):
    requests = read("counterfact", made("counterfact"))
    assert [len(request.neighbors) for request in requests] == [2] * MADE
    assert [request.paraphrases[0].split("still. ")[1] for request in requests] == [
        f"Danielle Darrieux {number}’s Ä, a native" for number in range(MADE)
    ]


def test_known_facts_are_read_as_raw_records(made):
    records = list(read_records(made("known")))
    assert [record.number for record in records] == list(range(MADE))
    assert all(record.get("subject") in record.get("prompt") for record in records)


def test_a_flat_file_yields_the_paraphrases_that_are_ones(made, caplog):
    """Those that ask as an edit of the same file does; here every third."""
    path = made("easyedit")
    records = json.loads(path.read_text(encoding="utf-8"))
    for record in records[::3]:
        record["rephrase_prompt"] = f"It rained. The mother tongue of {record['subject']} is"
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        requests = read("easyedit", path)
    assert "20 of 60 records have a rephrase_prompt that is a paraphrase" in caplog.text
    assert [len(request.paraphrases) for request in requests] == [1, 0, 0] * 20
    assert [len(request.generation) for request in requests] == [0, 1, 1] * 20


@pytest.mark.parametrize(("name", "file", "count"), FILES, ids=[file for _, file, _ in FILES])
def test_a_real_file_loads_whole(shared, name, file, count):
    check_whole(read(name, shared / file), count)


def check_whole(requests, count):
    assert len(requests) == count
    assert len({request.case_id for request in requests}) == count
    for request in requests:
        assert request.subject in request.question
        assert len(request.neighbor_answers) == len(request.neighbors)
        assert all(request.neighbor_answers)
        assert len(request.portability_answers) == len(request.portability)


@pytest.mark.parametrize("folder", ["counterfact", "zsre", "built"])
def test_no_file_is_forgotten(shared, folder):
    assert {f"{folder}/{path.name}" for path in (shared / folder).glob("*.json")} <= {file for _, file, _ in FILES}


def test_the_known_facts_for_tracing_are_read_as_raw_records(shared):
    records = list(read_records(shared / "other" / "known_1000.json"))
    assert len(records) == 1209
    assert all(record.get("subject") in record.get("prompt") for record in records)


def test_every_list_of_the_rebuilt_counterfact_is_there(shared):
    requests = read("counterfact", shared / "built" / "counterfact_rebuilt.json")
    assert sum(len(request.neighbors) for request in requests) == 92_466
    assert all(len(request.paraphrases) == 2 for request in requests)


def test_the_flat_files_yield_the_paraphrases_that_are_ones(shared, caplog):
    with caplog.at_level(logging.WARNING):
        requests = read("easyedit", shared / "counterfact" / "counterfact-edit.json")
    assert "1,711 of 10,000 records have a rephrase_prompt that is a paraphrase" in caplog.text
    assert sum(len(request.paraphrases) for request in requests) == 1711
    assert sum(len(request.generation) for request in requests) == 10_000 - 1711


def test_a_flat_paraphrase_asks_for_the_relation_of_its_edit(shared):
    """Relations come from the rebuilt file; a template's are those of the records that it edits."""
    rebuilt = read("counterfact", shared / "built" / "counterfact_rebuilt.json")
    relation = {request.case_id: request.relation_id for request in rebuilt}
    served = {}
    for request in rebuilt:
        served.setdefault(request.prompt, set()).add(request.relation_id)
    checked = 0
    for request in read("easyedit", shared / "counterfact" / "counterfact-edit.json"):
        for text in request.paraphrases if request.case_id in relation else ():
            ends = [prompt for prompt in served if text.endswith(prompt.replace("{}", request.subject))]
            if ends:
                assert relation[request.case_id] in set().union(*(served[prompt] for prompt in ends)), text
                checked += 1
    assert checked > 1000
