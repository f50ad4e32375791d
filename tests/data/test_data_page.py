"""Every example of docs/data.md is read as the page says."""

import json
import re
from pathlib import Path

import pytest

from sphere_pl.data.datamodule import BUILT_IN, EditDataModule
from sphere_pl.data.fields import NAMES
from sphere_pl.data.formats import FORMATS
from sphere_pl.model.tokens import in_context

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([a-z_]+)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
ABOUT = dict(re.findall(r"^## ([A-Z][\w ]+)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
COLUMNS = {"hf": {"ask": "prompt", "about.name": "subject", "say": "target"}}
# What is asked, and what is to be answered, by each edit of an example.
READ = {
    "jsonl": [
        ("The capital of Norway is", "Bergen"),
        ("Who wrote Moby-Dick?", "Jane Austen"),
        ("Miles Davis plays the", "violin"),
        ("The sky at noon is", "green"),
    ],
    "uniedit": [("The taxon rank of Zaprora silenus is", "genus")],
    "craft": [("2025年6月上海的人口是多少？", "2500万")],
    "hf": [("The capital of Norway is", "Bergen")],
    "csv": [("The capital of Norway is", "Bergen"), ("Miles Davis plays the", "violin")],
    "counterfact": [("The mother tongue of Danielle Darrieux is", "English")],
    "zsre": [("What university did Watts Humphrey attend?", "Illinois Institute of Technology")],
    "mquake": [("Hey Jude was performed by", "Madonna"), ("Madonna is a citizen of", "Australia")],
    "wikibigedit": [("What team is Antti Hirvonen a member of?", "HIFK")],
    "knowedit": [("The place of death of Leo Arons is", "Berlin-Mitte")],
    "easyedit": [("The mother tongue of Danielle Darrieux is", "English")],
    "known": [("Vinson Massif is located in the continent of", "Antarctica")],
}


def example(name):
    """The kind and the text of a section's example."""
    return re.search(r"```(json|csv)\n(.*?)```", SECTIONS[name], re.DOTALL).groups()


def read(name, folder):
    kind, text = example(name)
    if kind == "json" and name != "jsonl":
        kind, text = "json", json.dumps([json.loads(text)])
    path = folder / f"edits.{'jsonl' if name == 'jsonl' else kind}"
    path.write_text(text, encoding="utf-8")
    data = EditDataModule(name, str(path), columns=COLUMNS.get(name))
    data.setup("fit")
    return data.requests


def test_every_format_has_its_section():
    assert set(SECTIONS) == {BUILT_IN, *FORMATS} == {BUILT_IN, *READ}


@pytest.mark.parametrize("name", READ)
def test_every_example_is_read(name, tmp_path):
    requests = read(name, tmp_path)
    assert [(request.question, request.target_new) for request in requests] == READ[name]


@pytest.mark.parametrize("name", ["counterfact", "zsre", "mquake", "wikibigedit", "knowedit", "easyedit", "uniedit"])
def test_examples_of_published_formats_hold_the_prompts_that_test_an_edit(name, tmp_path):
    request = read(name, tmp_path)[-1]
    assert request.paraphrases or request.generation
    assert name == "mquake" or len(request.neighbors) == len(request.neighbor_answers) == 1
    assert name not in {"mquake", "wikibigedit", "knowedit", "uniedit"} or request.portability_answers


def test_every_field_of_ones_own_records_and_each_of_its_names_stand_in_the_table(tmp_path):
    rows = re.findall(r"^\|(.*)\|$", SECTIONS["jsonl"], re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == {*NAMES, *sum(NAMES.values(), ())}
    last = read("jsonl", tmp_path)[-2]
    assert last.case_id == "miles"
    assert all(last._replace(target_id="of other formats"))  # the longest example has every field


def test_records_under_a_key_and_targets_of_other_scripts_are_read_as_the_page_says(tmp_path):
    (tmp_path / "wrapped.json").write_text(re.search(r"```json\n(.*?)```", ABOUT["Shapes"], re.DOTALL)[1])
    (tmp_path / "scripts.jsonl").write_text(
        re.search(r"```json\n(.*?)```", ABOUT["How a target follows its prompt"], re.DOTALL)[1], encoding="utf-8"
    )
    found = {}
    for name in ("wrapped.json", "scripts.jsonl"):
        data = EditDataModule(path=str(tmp_path / name))
        data.setup("fit")
        found[name] = [in_context(request, "", request.target_new).whole for request in data.requests]
    assert found["wrapped.json"] == ["The capital of Norway is Bergen", "IBM was founded in 1899"]
    assert found["scripts.jsonl"] == [
        "埃及的首都是柏林", "Question: where is Rome?\nAnswer:\nSpain", "日本の首都は Kyoto",
    ]  # fmt: skip
