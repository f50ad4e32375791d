"""The real files beside the checkout load whole."""

import logging

import pytest

from sphere_pl.data.datamodule import EditDataModule
from sphere_pl.data.records import read_records

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


@pytest.mark.parametrize(("name", "file", "count"), FILES, ids=[file for _, file, _ in FILES])
def test_a_real_file_loads_whole(shared, name, file, count):
    requests = read(name, shared / file)
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
    assert "1711 of 10000 records have a rephrase_prompt that is a paraphrase" in caplog.text
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
