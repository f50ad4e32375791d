"""Every reader on records in its format's schema."""

import copy
import logging
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sphere_pl.data.datamodule import EditDataModule
from sphere_pl.data.fields import NAMES as FIELDS
from sphere_pl.data.formats import FORMATS
from sphere_pl.data.formats.easyedit import keep_paraphrases
from sphere_pl.data.formats.jsonl import read_jsonl, write_jsonl
from sphere_pl.data.records import Record
from sphere_pl.data.request import EditRequest
from sphere_pl.data.request_checks import check_request
from sphere_pl.errors import UserError

NAMES = sorted(set(FORMATS) - {"csv", "hf"})
WHERE = "edits.json, line 12"


def read(name, fields, number=4):
    return [check_request(request) for request in FORMATS[name].read(Record(WHERE, number, fields))]


def test_counterfact(schemas):
    (request,) = read("counterfact", schemas("counterfact"))
    assert request == EditRequest(
        case_id="7",
        prompt="The mother tongue of {} is",
        subject="Danielle Darrieux",
        target_new="English",
        target_true="French",
        relation_id="P103",
        paraphrases=("Shayna does this and Yossel goes still. Danielle Darrieux, a native",),
        neighbors=("Michel Rocard is a native speaker of", "Jean Gabin was a native speaker of"),
        neighbor_answers=("French", "French"),
        generation=("Danielle Darrieux's mother tongue is",),
        source=WHERE,
        target_id="Q1860",
    )


def test_counterfact_without_its_optional_lists(schemas):
    fields = schemas("counterfact")
    fields = {name: fields[name] for name in ("case_id", "requested_rewrite")}
    del fields["requested_rewrite"]["target_new"]["id"]
    (request,) = read("counterfact", fields)
    assert request.paraphrases == request.neighbors == request.neighbor_answers == request.generation == ()
    assert request.target_id is None


def test_counterfact_with_texts_for_objects(schemas):
    fields = schemas("counterfact")
    (with_ids,) = read("counterfact", fields)
    fields["requested_rewrite"] |= {"target_new": "English", "target_true": "French"}
    (request,) = read("counterfact", fields)
    assert request == with_ids._replace(target_id=None)


def test_mquake_with_texts_for_objects(schemas):
    fields = schemas("mquake")
    with_ids = read("mquake", fields)
    for rewrite in fields["requested_rewrite"]:
        rewrite |= {name: rewrite[name]["str"] for name in ("target_new", "target_true")}
    assert read("mquake", fields) == [each._replace(target_id=None) for each in with_ids]


def test_counterfact_without_a_true_object_knows_no_answers_of_neighbours(schemas):
    fields = schemas("counterfact")
    del fields["requested_rewrite"]["target_true"]
    (request,) = read("counterfact", fields)
    assert request.target_true is None
    assert len(request.neighbors) == 2
    assert request.neighbor_answers == ()


def test_a_conversation_is_refused_with_how_to_ask_in_one():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is Rome?"}]
    for fields in ({"prompt": messages}, {"prompt": messages[1:]}, {"messages": messages}, messages[1]):
        with pytest.raises(UserError, match=f"{WHERE}: .* is a conversation, .* choose --data.chat=chat"):
            read("jsonl", {"subject": "Rome", "target": "Spain", **fields})


def test_zsre_edits_in_the_first_true_answer(schemas):
    (request,) = read("zsre", schemas("zsre"))
    assert request.prompt == "What university did {} attend?"
    assert request.target_new == "Illinois Institute of Technology"
    assert request.target_true is None
    assert request.aliases == ("IIT",)
    assert request.case_id == "4"
    assert request.paraphrases == ("What university did Watts Humphrey take part in?",)
    assert request.neighbors == ("nq question: who played desmond doss father in hacksaw ridge?",)
    assert request.neighbor_answers == ("Hugo Weaving",)


def test_zsre_blanks_the_last_of_several_mentions(schemas):
    (request,) = read(
        "zsre", schemas("zsre") | {"subject": "Lyon", "src": "In Lyon, what is Lyon known for? Lyonnais."}
    )
    assert request.prompt == "In Lyon, what is {} known for? Lyonnais."
    assert request.question == "In Lyon, what is Lyon known for? Lyonnais."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"subject": "Humphrey Watts"}, "'Humphrey Watts' does not occur in src"),
        ({"answers": []}, "'answers' is missing or empty"),
        ({"loc": "who played"}, "expected it to hold 'nq question: '"),
        ({"src": "What {} did Watts Humphrey attend?"}, "exactly one"),
    ],
)
def test_zsre_refuses_what_the_papers_protocol_cannot_use(schemas, change, words):
    with pytest.raises(UserError, match=rf"edits.json, line 12: .*{words}"):
        read("zsre", schemas("zsre") | change)


def test_knowedit(schemas):
    (request,) = read("knowedit", schemas("knowedit"))
    assert request.prompt == "The place of death of {} is"
    assert (request.target_new, request.target_true) == ("Berlin-Mitte", "Berlin")
    assert request.paraphrases == ("Where did Leo Arons die?",)
    assert request.neighbors == ("Leo Arons spoke",)
    assert request.neighbor_answers == ("German",)
    assert request.portability == (
        "Is Leo Arons alive?", "Leo Arons died in the country of", "Martin Leo Arons died in",
    )  # fmt: skip
    assert request.portability_answers == (("no", "incorrect", "dead"), ("Germany",), ("Berlin-Mitte",))


def test_knowedit_with_the_bare_minimum_and_what_the_hub_makes_of_it(schemas):
    fields = {name: schemas("knowedit")[name] for name in ("subject", "prompt", "target_new")}
    hub = fields | {"ground_truth": None, "portability": {"Reasoning": None}, "locality": None, "rephrase": None}
    assert read("knowedit", fields) == read("knowedit", hub)


def test_mquake_makes_an_edit_of_every_rewrite(schemas):
    first, last = read("mquake", schemas("mquake"))
    assert (first.case_id, last.case_id) == ("3-0", "3-1")
    assert (first.question, first.target_new, first.relation_id) == ("Hey Jude was performed by", "Madonna", "P175")
    assert first.paraphrases == ("Who performed Hey Jude?",)
    assert first.portability == ()
    assert (first.aliases, last.aliases) == (("Madonna Ciccone",), ("Oz",))
    assert len(last.portability) == 2
    assert last.portability_answers == (("Australia", "AU", "Oz"),) * 2


def test_wikibigedit(schemas):
    (request,) = read("wikibigedit", schemas("wikibigedit"))
    assert request.prompt == "What team is {} a member of?"
    assert request.paraphrases == ("Antti Hirvonen plays for which team?", "Mate, who does Antti Hirvonen play for?")
    assert (request.neighbors, request.neighbor_answers) == (("What team does John Smith play for?",), ("Leeds",))
    assert request.portability_answers == (("Helsinki",),)
    fields = schemas("wikibigedit") | {"mhop": None, "mhop_ans": None, "loc": None, "personas": ""}
    (request,) = read("wikibigedit", fields)
    assert request.portability == request.portability_answers == request.neighbors == request.neighbor_answers == ()
    assert len(request.paraphrases) == 1


def flat(subject, template, new, true, rephrase):
    request = EditRequest("0", template, subject, new, true, paraphrases=(rephrase,))
    return check_request(request)


def test_easyedit_keeps_only_rephrasings_that_are_paraphrases(caplog):
    requests = [
        flat("Anna", "The mother tongue of {} is", "Dutch", "French", "He left. Anna spoke the language"),
        flat("Ben", "{} spoke the language", "French", "Dutch", "Where Ben is from, people speak the language of"),
        flat("Cleo", "{} spoke the language", "French", "Dutch", "He left. Cleo was born in"),
        flat("Dora", "{} was born in", "Lyon", "Rome", "Some song. Dora was born in"),
        flat("Eve", "The mother tongue of {} is", "Dutch", "French", "Eve spoke the language"),
    ]
    with caplog.at_level(logging.WARNING):
        done = keep_paraphrases(requests)
    assert [bool(request.paraphrases) for request in done] == [True, False, False, True, False]
    assert [bool(request.generation) for request in done] == [False, True, True, False, True]
    assert "2 of 5 records have a rephrase_prompt that is a paraphrase" in caplog.text


def test_easyedit_is_sorted_when_read_from_a_file(load, schemas):
    record = schemas("easyedit")
    other = record | {"case_id": 1, "rephrase_prompt": "It rained. The mother tongue of Danielle Darrieux is"}
    first, second = load("easyedit", [record, other])
    assert first.generation == (record["rephrase_prompt"],)
    assert second.paraphrases == (other["rephrase_prompt"],)
    assert (first.neighbors, first.neighbor_answers) == (("Michel Rocard is a native speaker of",), ("French",))


def test_a_known_fact_says_what_is_true(schemas):
    (request,) = read("known", schemas("known"))
    assert (request.case_id, request.subject, request.relation_id) == ("7", "Vinson Massif", "P30")
    assert request.target_new == request.target_true == "Antarctica"


def test_jsonl_needs_three_fields(schemas):
    (request,) = read("jsonl", schemas("jsonl"))
    assert request == EditRequest("4", "The capital of {} is", "France", "Berlin", source=WHERE)
    (same,) = read("jsonl", {"question": "The capital of France is", "entity": "France", "answer": "Berlin"})
    assert same == request


def test_jsonl_takes_everything_else(schemas):
    extra = {
        "id": 9, "target_true": "Paris", "relation": "P36", "aliases": ["Spree-Athen"],
        "paraphrase": "France is ruled from",
        "neighbours": ["Spain's capital is", "Italy's capital is"], "neighbor_answers": ["Madrid", "Rome"],
        "generation": ["France is"], "portability": ["The river there is"], "portability_answers": "Spree", "_note": 1,
    }  # fmt: skip
    (request,) = read("jsonl", schemas("jsonl") | extra)
    assert (request.case_id, request.relation_id, request.aliases) == ("9", "P36", ("Spree-Athen",))
    assert request.paraphrases == ("France is ruled from",)
    assert request.neighbor_answers == ("Madrid", "Rome")
    assert request.portability_answers == (("Spree",),)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"paraphrasess": "x"}, "the field 'paraphrasess' is unknown. Did you mean paraphrases"),
        ({"target_new": "x"}, "the field 'target' is given twice, once as 'target_new'"),
        ({"target": True}, "'target' is bool .*expected str"),
        ({"target": float("nan")}, "'target' is nan, which is no text"),
        ({"target": ""}, "'target' is missing"),
        ({"neighbors": ["a", "b", "c"], "neighbor_answers": ["d", "e"]}, "2 answers for 3 prompts"),
        ({"neighbors": '["a", '}, "begins like a JSON list but is none"),
        ({"paraphrases": [" "]}, "is empty"),
        ({"": "x"}, "the field '' is unknown"),
        ({"targt": "x", "target": None}, r"'targt' is unknown. Did you mean .*--data.columns '\{targt: target\}'"),
    ],
)
def test_jsonl_names_what_is_wrong(schemas, change, words):
    with pytest.raises(UserError, match=rf"edits.json, line 12: .*{words}"):
        read("jsonl", schemas("jsonl") | change)


def test_a_table_without_a_header_is_told_to_have_one(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("The capital of {} is,France,Rome\nThe capital of {} is,Spain,Oslo\n")
    with pytest.raises(UserError, match=r"line 2: the columns .* are no fields. The first row of a table names its"):
        EditDataModule(path=str(path)).setup("fit")


def test_a_column_that_only_counts_the_rows_is_left_alone(schemas):
    for name in ("", "Unnamed: 0"):
        assert read("jsonl", {name: "17", **schemas("jsonl")}) == read("jsonl", schemas("jsonl"))


def test_objects_of_wikidata_are_their_names(schemas):
    targets = {"target_new": {"str": "Berlin", "id": "Q64"}, "target_true": {"str": "Paris", "id": "Q90"}}
    (request,) = read("jsonl", {key: value for key, value in schemas("jsonl").items() if key != "target"} | targets)
    assert (request.target_new, request.target_true) == ("Berlin", "Paris")


def test_records_that_only_have_identifiers_are_told_where_names_are():
    edit = {"prompt": "Leo is a citizen of Syria.", "subject_id": "Q1", "relation": "COUNTRY", "target_id": "Q858"}
    with pytest.raises(UserError, match=r"identifier but no name, as in RippleEdits' own files. KnowEdit has"):
        read("uniedit", {"example_type": "popular", "edit": edit})


def places(value, path=()):
    """Where a record can be changed: every field and list item, at any depth."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*path, key)
        yield from places(inner, (*path, key))


def change(fields, path, value):
    """Put a value at a place, or take the place out if it is None."""
    fields = copy.deepcopy(fields)
    inside = fields
    for key in path[:-1]:
        inside = inside[key]
    if value is None:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return fields


def read_or_refuse(name, fields):
    refusal, requests = "", []
    try:
        requests = FORMATS[name].complete(read(name, fields))
    except UserError as error:
        refusal = str(error)
    assert not refusal or refusal.startswith(WHERE)
    assert len(refusal) < 1000
    for request in requests:
        assert isinstance(request.question + request.target_new, str)
        assert len(request.neighbor_answers) in {0, len(request.neighbors)}
        assert len(request.portability_answers) in {0, len(request.portability)}
        texts = request.paraphrases + request.neighbors + request.neighbor_answers + request.portability
        assert all(isinstance(text, str) for text in texts)


@pytest.mark.parametrize("name", NAMES)
def test_a_record_without_one_of_its_fields_is_read_or_refused_with_its_place(schemas, name):
    fields = schemas(name)
    for path in places(fields):
        for value in (None, 3, True, [], {}, "", "x", [3], [["x"]], [{}], {"str": 3}, {"Reasoning": "x"}):
            read_or_refuse(name, change(fields, path, value))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(junk=JUNK, seed=st.integers(0, 10_000))
def test_junk_anywhere_is_read_or_refused_with_its_place(schemas, name, junk, seed):
    fields = schemas(name)
    path = random.Random(seed).choice(list(places(fields)))
    read_or_refuse(name, change(fields, path, junk))


@pytest.mark.parametrize("name", NAMES)
def test_a_field_that_must_be_there_is_named(schemas, name):
    needed = {
        "counterfact": ["case_id", "requested_rewrite"],
        "zsre": ["subject", "src", "rephrase", "answers", "loc", "loc_ans"],
        "knowedit": ["subject", "prompt", "target_new"],
        "easyedit": ["case_id", "prompt", "subject", "target_new"],
        "known": ["prompt", "subject", "attribute"],
        "mquake": ["case_id", "requested_rewrite", "new_answer"],
        "wikibigedit": ["subject", "update", "ans"],
        "jsonl": ["prompt", "subject", "target"],
        "uniedit": ["edit"],
        "craft": ["question", "answer"],
    }[name]
    for field in needed:
        with pytest.raises(UserError, match=rf"edits.json, line 12: the field '{field}.*' is missing or empty"):
            read(name, change(schemas(name), (field,), None))


def test_jsonl_is_written_as_it_is_read():
    request = EditRequest(
        "7", "The capital of {} is", "France", "Lyon", "Paris", "P36", ("So {} has",), ("Rome is in",), ("Italy",),
        ("France is",), "here", aliases=("L", "M"), portability=("Who?",), portability_answers=(("A",),),
        joiner="", wordings=("{} has its capital in",),
    )  # fmt: skip
    written = write_jsonl(request)
    assert set(written) == set(FIELDS)
    assert read_jsonl(Record("here", 3, copy.deepcopy({**written, **_as_lists(written)}))) == [request]
    assert set(write_jsonl(EditRequest("1", "{} is", "a", "b"))) == {"case_id", "prompt", "subject", "target"}


def _as_lists(fields):
    return {name: list(value) for name, value in fields.items() if isinstance(value, tuple)}
