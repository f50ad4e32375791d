"""Files and hub data sets as raw records, and every way in which they can be broken."""

import gzip
import json

import pytest

from sphere_pl.data.files import read_records
from sphere_pl.data.hub import hub_records
from sphere_pl.errors import UserError

RECORD = '{"prompt": "{} is in", "subject": "Rome", "target": "Spain"}'


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", f"[\n{RECORD},\n{RECORD}\n]"),
        ("a.jsonl", f"{RECORD}\n\n{RECORD}\n"),
        ("a.csv", "prompt,subject,target\n{} is in,Rome,Spain\n{} is in,Rome,Spain\n"),
        ("a.json", f"{RECORD}\n{RECORD}\n"),
        ("a.json", f"{json.dumps(json.loads(RECORD), indent=1)}\n{json.dumps(json.loads(RECORD), indent=1)}"),
        ("a.jsonl", f"[\n{RECORD},\n{RECORD}\n]"),
        ("a.json", f'{{"data": [{RECORD}, {RECORD}]}}'),
        ("a.json", f'{{"meta": 1, "test": [{{"x": 1}}], "train": [{RECORD}, {RECORD}]}}'),
        ("a.json", f'{{"one": {RECORD}, "two": {RECORD}}}'),
        ("a.json", f'{{"set": {{"facts": [{RECORD}, {RECORD}]}}}}'),
        ("a.json", '{"prompt": ["{} is in", "{} is in"], "subject": ["Rome", "Rome"], "target": ["Spain", "Spain"]}'),
        ("a.jsonl.gz", gzip.compress(f"{RECORD}\n{RECORD}".encode(), mtime=0)),
        ("a.json", f"[{RECORD}, {RECORD}]".encode("utf-16")),
        ("facts", f"{RECORD}\n{RECORD}"),
        ("a.txt", "prompt\tsubject\ttarget\n{} is in\tRome\tSpain\n{} is in\tRome\tSpain\n"),
        ("a.tsv", "prompt\tsubject\ttarget\n{} is in\tRome\tSpain\n{} is in\tRome\tSpain\n"),
        ("a.csv", "prompt;subject;target\n{} is in;Rome;Spain\n{} is in;Rome;Spain\n"),
        ("a.csv", "sep=;\nprompt;subject;target\n{} is in;Rome;Spain\n{} is in;Rome;Spain\n"),
        ("a.csv", "prompt,subject,target\r{} is in,Rome,Spain\r{} is in,Rome,Spain\r"),
        ("a.jsonl", f"# mine\n{RECORD},\n// more\n{RECORD},\n"),
        ("a.json", f"{RECORD},\n{RECORD}\n"),
        ("a.csv", "\ufeffprompt,subject,target\r\n{} is in,Rome,Spain\r\n{} is in,Rome,Spain\r\n"),
    ],
)
def test_every_kind_of_file_gives_the_same_records(tmp_path, name, content):
    records = list(read_records(write(tmp_path, name, content)))
    assert [record.fields for record in records] == [json.loads(RECORD)] * 2
    assert [record.number for record in records] == [0, 1]


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("a.json", f"[\n{RECORD},\n\n{RECORD}]", ["line 2", "line 4"]),
        ("a.json", f"[{RECORD}, {RECORD}]", ["line 1", "line 1 (record 2)"]),
        ("a.jsonl", f"{RECORD}\n\n{RECORD}", ["line 1", "line 3"]),
        ("a.csv", 'prompt,target\n"two\nlines",x\ny,z', ["line 2", "line 4"]),
    ],
)
def test_records_know_their_line(tmp_path, name, content, lines):
    path = write(tmp_path, name, content)
    assert [record.where for record in read_records(path)] == [f"{path}, {line}" for line in lines]


def test_line_separators_inside_a_text_are_text(tmp_path):
    text = "one\u2028two\x85three"
    (record,) = read_records(write(tmp_path, "a.jsonl", json.dumps({"prompt": text}, ensure_ascii=False)))
    assert record.fields["prompt"] == text
    (record,) = read_records(write(tmp_path, "a.csv", f"prompt,target\n{text},x\n"))
    assert record.fields["prompt"] == text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", "", "is empty"),
        ("a.jsonl", " \n\n", "is empty"),
        ("a.csv", b"\xef\xbb\xbf", "is empty"),
        ("a.csv", "prompt\nMünchen".encode("latin-1"), "is not UTF-8 text"),
        ("a.json", '{"facts": 3}', "line 1: expected a list of records, found an object with facts"),
        ("a.json", f'{{"a": [{RECORD}], "b": [{RECORD}]}}', "several lists of records: a, b.*--data.split=a"),
        ("a.jsonl.gz", b"\x1f\x8b\x08cut off", "could not be unpacked"),
        ("a.xlsx", b"PK\x03\x04", "a zip archive .or a workbook.*save it as CSV"),
        ("a.parquet", b"PAR0", "no Parquet file"),
        ("a.json", f"[\n{RECORD},\n{RECORD},", "not closed after record 2.*cut off"),
        ("a.json", f"[\n{RECORD}", "not closed after record 1.*cut off"),
        ("a.json", "[", "not closed after record 0"),
        ("a.json", f"[{RECORD} {RECORD}]", "not closed after record 1"),
        ("a.json", f"[{RECORD}]\n[]", "line 2: something follows the list"),
        ("a.json", '[\n{"a": 1},\n{"a": }]', "line 3: malformed JSON"),
        ("a.json", "[\n3]", "line 2: expected an object with named fields, found int"),
        ("a.jsonl", f"{RECORD}\n{RECORD[:-5]}", "line 2: malformed JSON"),
        ("a.jsonl", f'{RECORD}\n{{"a": {"1" * 5000}}}', "line 2: malformed JSON"),
        ("a.jsonl", "[" * 200_000, "line 1: malformed JSON"),
        ("a.json", "[" * 200_000, "line 1: malformed JSON"),
        ("a.jsonl", '["a"]', "line 1: expected an object with named fields, found list"),
        ("a.csv", "prompt,target\na,b\na,b,c", "line 3: the row does not have as many cells"),
        ("a.csv", "prompt,target\na", "line 2: the row does not have as many cells"),
        ("a.csv", "prompt,prompt\na,b", "names a column twice"),
        ("a.csv", f"prompt\n{'a' * 200_000}", "line 2: malformed CSV: .*Use a .jsonl file"),
        ("a.jsonl", f'{RECORD[:-1]}, "target": "Oslo"}}', "line 1: malformed JSON: 'target' stands twice"),
        ("a.json", '[{"a": 1},\n{"b": {"c": 1, "c": 2}}]', "line 2: malformed JSON: 'c' stands twice"),
        ("a.csv", "prompt,target\na,b\n".encode("utf-16-le"), "UTF-16 without its mark"),
        ("a.txt", "Just prose.", "must be a .json, .jsonl, .csv, .tsv, .parquet file"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_with_its_name(tmp_path, name, content, words):
    path = write(tmp_path, name, content)
    with pytest.raises(UserError, match=f"(?s){name}.*{words}") as error:
        list(read_records(path))
    assert len(str(error.value)) < 1000


def test_a_folder_stands_for_the_one_data_file_in_it(tmp_path):
    write(tmp_path, "README.md", "x")
    with pytest.raises(UserError, match=r"a folder with no .json, .jsonl, .csv, .tsv, .parquet file"):
        list(read_records(tmp_path))
    write(tmp_path, "a.jsonl", RECORD)
    assert len(list(read_records(tmp_path))) == 1
    write(tmp_path, "b.jsonl", f"{RECORD}\n{RECORD}")
    with pytest.raises(UserError, match=r"2 data files \(a.jsonl, b.jsonl\). Name one: --data.file"):
        list(read_records(tmp_path))
    assert len(list(read_records(tmp_path, "b.jsonl"))) == 2
    with pytest.raises(UserError, match=r"c.jsonl could not be read"):
        list(read_records(tmp_path, "c.jsonl"))
    with pytest.raises(UserError, match=r"--data.file='b.jsonl' names a file of a folder, but .*a.jsonl' is none"):
        list(read_records(tmp_path / "a.jsonl", "b.jsonl"))


def test_rows_of_the_hub_are_records(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return [{"subject": "Rome"}, {"subject": None}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    first, second = hub_records("someone/facts", "part.json", "test")
    assert asked == [(("someone/facts",), {"data_files": "part.json", "split": "test"})]
    assert (first.where, second.number) == ("someone/facts, row 0", 1)
    assert first.get("subject") == "Rome"
    assert second.optional("subject") is None
    with pytest.raises(UserError, match="someone/facts, row 1: the field 'subject' is missing or empty"):
        second.get("subject")


@pytest.mark.parametrize(
    "error", [OSError("offline\nmore"), ValueError("no split"), RuntimeError("a script"), OSError()]
)
def test_a_hub_that_gives_nothing_is_named(monkeypatch, error):
    def load_dataset(*_, **__):
        raise error

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"--data.path='someone/facts' is no file, and the hub did not give it"):
        list(hub_records("someone/facts"))
