import itertools
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

import sphere_pl
from sphere_pl.data.builtin import corpus_passages, facts_path, heldout_text, sentence_openers
from tools.build_facts import (
    Fact,
    Templates,
    build,
    check_records,
    check_sources,
    make_records,
    read_facts,
    read_templates,
)

FOLDER = facts_path().parent
SOURCES = Path(__file__).parents[2] / "tools" / "facts"
RECORDS = json.loads(facts_path().read_text(encoding="utf-8"))
TABLE = [line.split("\t") for line in (SOURCES / "facts.tsv").read_text(encoding="utf-8").splitlines()[1:]]
LISTS = ("paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts")


def rewrite(record):
    return record["requested_rewrite"]


def holds_name(text, name):
    """Tell, without the build's regular expression, whether the text holds the name and not just a longer word."""
    pieces = f" {text} ".split(name)
    return any(not (left[-1:].isalnum() or right[:1].isalnum()) for left, right in itertools.pairwise(pieces))


def test_every_record_has_the_counterfact_schema():
    for record in RECORDS:
        assert list(record) == ["case_id", "requested_rewrite", *LISTS]
        request = rewrite(record)
        assert list(request) == ["prompt", "relation_id", "subject", "target_new", "target_true"]
        assert all(isinstance(request[key], str) for key in ("prompt", "relation_id", "subject"))
        assert set(request["target_new"]) == set(request["target_true"]) == {"str"}
        assert re.fullmatch(r"P\d+", request["relation_id"])


def test_the_set_is_large_and_varied_enough():
    relations = Counter(rewrite(record)["relation_id"] for record in RECORDS)
    assert len(RECORDS) >= 600
    assert len(relations) >= 10
    assert min(relations.values()) >= 20
    assert facts_path().stat().st_size < 1_200_000


def test_case_ids_count_up_and_no_fact_is_edited_twice():
    assert [record["case_id"] for record in RECORDS] == list(range(len(RECORDS)))
    edits = [(rewrite(record)["subject"], rewrite(record)["relation_id"]) for record in RECORDS]
    assert len(set(edits)) == len(edits)


def test_prompts_hold_the_subject_once_and_no_target():
    for record in RECORDS:
        request = rewrite(record)
        subject = request["subject"]
        assert request["prompt"].count("{}") == 1
        filled = request["prompt"].replace("{}", subject)
        about_subject = record["paraphrase_prompts"] + record["generation_prompts"]
        assert all(subject in prompt for prompt in about_subject)
        assert filled not in about_subject
        for target in (request["target_new"]["str"], request["target_true"]["str"]):
            assert not any(holds_name(prompt, target) for prompt in [filled, *about_subject])


def test_lists_have_the_promised_lengths_without_repeats():
    for record in RECORDS:
        assert len(record["paraphrase_prompts"]) == 2
        assert len(record["neighborhood_prompts"]) >= 5
        assert len(record["attribute_prompts"]) >= 1
        assert len(record["generation_prompts"]) >= 2
        prompts = [prompt for name in LISTS for prompt in record[name]]
        assert len(set(prompts)) == len(prompts)


def test_texts_are_clean():
    for record in RECORDS:
        request = rewrite(record)
        texts = [request["prompt"], request["subject"], request["target_new"]["str"], request["target_true"]["str"]]
        texts += [prompt for name in LISTS for prompt in record[name]]
        for text in texts:
            assert text
            assert text == " ".join(text.split())
        assert "{}" not in "".join(texts[1:])


def test_targets_are_two_objects_of_the_relation():
    objects = defaultdict(set)
    true = defaultdict(set)
    for relation, subject, value in TABLE:
        objects[relation].add(value)
        true[relation, subject].add(value)
    for record in RECORDS:
        request = rewrite(record)
        facts = true[request["relation_id"], request["subject"]]
        assert request["target_true"]["str"] in facts
        assert request["target_new"]["str"] in objects[request["relation_id"]] - facts


def test_neighbours_share_the_true_object_and_do_not_name_the_new_one():
    subjects = defaultdict(set)
    for relation, subject, value in TABLE:
        subjects[relation, value].add(subject)
    for record in RECORDS:
        request = rewrite(record)
        same = subjects[request["relation_id"], request["target_true"]["str"]] - {request["subject"]}
        other = subjects[request["relation_id"], request["target_new"]["str"]]
        for prompt in record["neighborhood_prompts"]:
            assert any(holds_name(prompt, name) for name in same), prompt
            assert not holds_name(prompt, request["target_new"]["str"]), prompt
        for prompt in record["attribute_prompts"]:
            assert any(holds_name(prompt, name) for name in other), prompt


def test_no_neighbour_is_edited_anywhere_in_the_set():
    edited = {rewrite(record)["subject"] for record in RECORDS}
    prompts = {prompt for record in RECORDS for prompt in record["neighborhood_prompts"] + record["attribute_prompts"]}
    assert not [(prompt, name) for prompt in prompts for name in edited if name in prompt and holds_name(prompt, name)]


def test_any_hundred_records_cover_all_relations_evenly():
    everywhere = Counter(rewrite(record)["relation_id"] for record in RECORDS)
    for start in (0, 100, 200, 300, 400, 500):
        window = Counter(rewrite(record)["relation_id"] for record in RECORDS[start : start + 100])
        for relation, count in everywhere.items():
            assert abs(window[relation] - 100 * count / len(RECORDS)) <= 2
            assert window[relation] >= 1


def test_building_again_gives_the_same_bytes():
    assert build(SOURCES).encode() == facts_path().read_bytes()


def test_the_order_of_the_table_decides_nothing():
    facts = read_facts(SOURCES / "facts.tsv")
    templates = read_templates(SOURCES / "templates.toml")
    assert make_records(facts[::-1], templates) == RECORDS


def test_paraphrases_never_repeat_an_edit_wording():
    for relation, wordings in read_templates(SOURCES / "templates.toml").items():
        assert len(set(wordings.paraphrase)) >= 3, relation
        assert len(set(wordings.neighbour)) >= 2, relation
        assert len(set(wordings.generation)) >= 2, relation
        assert not set(wordings.paraphrase) & {*wordings.edit, *wordings.neighbour}, relation


WORDINGS = Templates("colour", ("{} is",), ("{} looks",), ("{} shines",), ("{} has",))
FACTS = [Fact("P1", f"thing {letter}", value) for value in ("red", "blue") for letter in value[0] + "vwxyz" + value[-1]]
FACTS = [Fact(fact.relation, f"{fact.subject} {fact.object[0]}", fact.object) for fact in FACTS]


def test_sound_sources_are_accepted():
    check_sources(FACTS, {"P1": WORDINGS})


@pytest.mark.parametrize(
    ("facts", "wordings", "message"),
    [
        ([*FACTS, FACTS[0]], WORDINGS, "twice"),
        ([*FACTS, Fact("P2", "thing", "red")], WORDINGS, r"Add \[P2\]"),
        ([*FACTS, Fact("P1", "Red Square", "red")], WORDINGS, "gives its object away"),
        ([*FACTS, Fact("P1", "grass", "green")], WORDINGS, "has 1 subjects, 6 are needed"),
        (FACTS, Templates("colour", ("{} and {} are",), (), (), ()), "exactly one"),
    ],
)
def test_unsound_sources_are_refused(facts, wordings, message):
    with pytest.raises(ValueError, match=message):
        check_sources(facts, {"P1": wordings})


def test_a_neighbour_that_names_an_edited_subject_is_refused():
    records = make_records(FACTS, {"P1": WORDINGS})
    check_records(records)
    records[0]["neighborhood_prompts"].append(f"{rewrite(records[-1])['subject']} is")
    with pytest.raises(ValueError, match="must not be edited"):
        check_records(records)


def test_data_files_lie_in_the_package():
    folder = Path(sphere_pl.__file__).parent / "data" / "builtin"
    assert facts_path() == folder / "facts.json"
    for name in ("facts.json", "heldout.txt", "openers.txt"):
        assert (folder / name).stat().st_size > 1000, name


def test_the_readme_counts_are_current():
    relations = {rewrite(record)["relation_id"] for record in RECORDS}
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"{len(RECORDS)} records over {len(relations)} relations, from {len(TABLE):,} facts" in readme
    assert f"{len(heldout_text().split()):,} words" in readme
    assert f"{len(sentence_openers())} sentence beginnings" in readme


def test_heldout_text_is_prose_about_other_things():
    paragraphs = heldout_text().split("\n\n")
    assert 20 <= len(paragraphs) <= 30
    assert 2500 <= len(heldout_text().split()) <= 3200
    assert all(len(paragraph.split()) > 60 for paragraph in paragraphs)
    names = {name for _, subject, value in TABLE for name in (subject, value)}
    assert not [name for name in names if holds_name(heldout_text(), name)]


def test_sentence_openers_are_short_and_distinct():
    openers = sentence_openers()
    assert len(openers) >= 200
    assert len(set(openers)) == len(openers)
    assert all(2 <= len(opener.split()) <= 6 for opener in openers)
    assert not [opener for opener in openers for _, subject, _ in TABLE if holds_name(opener, subject)]


def test_any_beginning_of_the_corpus_is_a_mixture_in_which_no_passage_recurs():
    passages = corpus_passages()
    assert len(set(passages)) == len(passages)
    assert all(50 <= len(passage) <= 1500 and "\ufffd" not in passage for passage in passages)
    for part in (passages[:150], passages[-150:]):
        assert 0.15 < sum(not passage.isascii() for passage in part) / len(part) < 0.6
