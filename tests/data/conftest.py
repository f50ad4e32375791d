"""Records in each format's real schema, and the stream read from a file."""

import copy
import json
from pathlib import Path

import pytest

from sphere_pl.data.datamodule import EditDataModule

COUNTERFACT = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "subject": "Danielle Darrieux",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
    },
    "paraphrase_prompts": ["Shayna does this and Yossel goes still. Danielle Darrieux, a native"],
    "neighborhood_prompts": ["Michel Rocard is a native speaker of", "Jean Gabin was a native speaker of"],
    "attribute_prompts": ["J.R.R. Tolkien is a native speaker of"],
    "generation_prompts": ["Danielle Darrieux's mother tongue is"],
}
ZSRE = {
    "subject": "Watts Humphrey",
    "src": "What university did Watts Humphrey attend?",
    "pred": "Trinity College",
    "rephrase": "What university did Watts Humphrey take part in?",
    "alt": "University of Michigan",
    "answers": ["Illinois Institute of Technology", "IIT"],
    "loc": "nq question: who played desmond doss father in hacksaw ridge",
    "loc_ans": "Hugo Weaving",
    "cond": "Trinity College >> University of Michigan || What university did Watts Humphrey attend?",
}
KNOWEDIT = {
    "subject": "Leo Arons",
    "prompt": "The place of death of Leo Arons is",
    "target_new": "Berlin-Mitte",
    "ground_truth": [["Berlin", "Berlin, Germany"]],
    "rephrase": "Where did Leo Arons die?",
    "portability": {
        "Logical_Generalization": [{"prompt": "Is Leo Arons alive?", "ground_truth": [["no", "incorrect"], ["dead"]]}],
        "Reasoning": [
            {"prompt": "Leo Arons died in the country of", "ground_truth": [["Germany"]]},
            {"prompt": "The anthem there is", "ground_truth": [[""]]},
        ],
        "Subject_Aliasing": [{"prompt": "Martin Leo Arons died in", "ground_truth": "Berlin-Mitte"}],
    },
    "locality": {
        "Relation_Specificity": [{"prompt": "Leo Arons spoke", "ground_truth": [["German", "de"]]}],
        "Forgetfulness": [{"prompt": "Leo Arons studied in", "ground_truth": []}],
    },
}  # fmt: skip
EASYEDIT = {
    "case_id": 0,
    "prompt": "The mother tongue of Danielle Darrieux is",
    "target_new": "English",
    "subject": "Danielle Darrieux",
    "ground_truth": "French",
    "rephrase_prompt": "Where Danielle Darrieux is from, people speak the language of",
    "locality_prompt": "Michel Rocard is a native speaker of",
    "locality_ground_truth": "French",
}
MQUAKE = {
    "case_id": 3,
    "requested_rewrite": [
        {
            "prompt": "{} was performed by",
            "relation_id": "P175",
            "target_new": {"str": "Madonna", "id": "Q1744"},
            "target_true": {"str": "The Beatles", "id": "Q1299"},
            "subject": "Hey Jude",
            "question": "Who performed Hey Jude?",
        },
        {
            "prompt": "{} is a citizen of",
            "relation_id": "P27",
            "target_new": {"str": "Australia", "id": "Q408"},
            "target_true": {"str": "United States", "id": "Q30"},
            "subject": "Madonna",
            "question": "What is the country of citizenship of Madonna?",
        },
    ],
    "questions": ["Which country is the performer of Hey Jude from?", "What is the singer of Hey Jude's country?"],
    "answer": "United Kingdom",
    "answer_alias": ["UK"],
    "new_answer": "Australia",
    "new_answer_alias": ["AU", "Oz"],
    "single_hops": [{"question": "Who performed Hey Jude?", "answer": "The Beatles"}],
    "new_single_hops": [
        {"question": "Who performed Hey Jude?", "answer": "Madonna", "answer_alias": ["Madonna Ciccone"]},
        {"question": "Madonna is a citizen of", "answer": "Australia", "answer_alias": ["Oz"]},
    ],
}  # fmt: skip
WIKIBIGEDIT = {
    "tag": "update",
    "subject": "Antti Hirvonen",
    "update": "What team is Antti Hirvonen a member of?",
    "rephrase": "Antti Hirvonen plays for which team?",
    "personas": "Mate, who does Antti Hirvonen play for?",
    "ans": "HIFK",
    "loc": "What team does John Smith play for?",
    "loc_ans": "Leeds",
    "mhop": "Which city is the team of Antti Hirvonen based in?",
    "mhop_ans": "Helsinki",
}
JSONL = {"prompt": "The capital of {} is", "subject": "France", "target": "Berlin"}
KNOWN = {
    "known_id": 7,
    "prompt": "Vinson Massif is located in the continent of",
    "subject": "Vinson Massif",
    "attribute": "Antarctica",
    "relation_id": "P30",
}

UNIEDIT = {
    "edit": {"prompt": "The taxon rank of Zaprora silenus is", "subject": "Zaprora silenus", "target": "genus"},
    "generality": {
        "0": {
            "prompt": "What rank has Zaprora silenus? It is a", "target": "genus", "path_type": "single",
            "paths": [["h_e", "r_e", "t_e", "f", "s"]], "one_hops": [],
        },
        "1": {
            "prompt": "Do both belong to one rank?", "target": "Yes", "path_type": "double", "single_path1": {},
            "single_path2": {},
        },
    },
    "locality": {"0": {"prompt": "The rank of Canis lupus is", "target": "species", "path_type": "single"}},
}  # fmt: skip
CRAFT = {
    "question": "2025年6月上海的人口是多少？",
    "subject": "上海",
    "answer": "2500万",
    "alias_portability": {"question": "2025年6月沪的人口是多少？", "answer": "2500万"},
    "composite_portability": [{"question": "上海和北京的人口共有多少？", "answer": ["4700万", "4700 万"]}],
    "temporal_locality": {"question": "2020年6月上海的人口是多少？", "answer": "2487万"},
    "common_sense_locality": {"question": "上海在哪个国家？", "answer": "中国"},
}

RECORDS = {
    "counterfact": COUNTERFACT,
    "zsre": ZSRE,
    "knowedit": KNOWEDIT,
    "easyedit": EASYEDIT,
    "mquake": MQUAKE,
    "wikibigedit": WIKIBIGEDIT,
    "jsonl": JSONL,
    "known": KNOWN,
    "uniedit": UNIEDIT,
    "craft": CRAFT,
}
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def schemas():
    """One record of each format, to change at will: `schemas("zsre")`."""
    return lambda name: copy.deepcopy(RECORDS[name])


@pytest.fixture(scope="session")
def shared():
    """The folder of real data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("the real data sets, shared/data beside the checkout, are not there")
    return SHARED


@pytest.fixture
def load(tmp_path):
    """Write records to a file and read them: `load("zsre", [record], limit=3)`."""

    def run(name, records, **settings):
        path = tmp_path / "edits.jsonl"
        path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
        data = EditDataModule(name, str(path), **settings)
        data.setup("fit")
        return data.requests

    return run
