"""Tables as spreadsheets, pandas and people write them."""

import pytest

from sphere_pl.data.datamodule import EditDataModule, FactList
from sphere_pl.errors import UserError


@pytest.fixture
def read(tmp_path):
    """Read a table whose format nobody names."""

    def run(text, name="facts.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        data = EditDataModule(path=str(path))
        data.setup("fit")
        return data.requests

    return run


HEADER = "prompt\tsubject\ttarget\n"


def test_a_quotation_mark_that_nobody_closed_swallows_no_other_row(read):
    rows = f'{HEADER}The "{{}}" is\tRome\t"Spain\nThe {{}} is\tOslo\tPeru"\n'
    found = read(rows, "facts.tsv")
    assert [(each.question, each.target_new) for each in found] == [
        ('The "Rome" is', '"Spain'),
        ("The Oslo is", 'Peru"'),
    ]
    with pytest.raises(UserError, match=r"line 2: malformed CSV: unexpected end of data\. A cell that holds quotation"):
        read('prompt,subject,target\n{} is,Rome,"Spain\n{} was,Oslo,x, y\n')


def test_a_quotation_at_the_beginning_of_a_cell_keeps_its_marks(read):
    for name, sign in (("facts.tsv", "\t"), ("facts.csv", ","), ("facts.csv", ";")):
        rows = ["prompt", "subject", "target", '"Hey" said {} to', "Rome", '"Spain"']
        (found,) = read("\n".join(sign.join(rows[at : at + 3]) for at in (0, 3)), name)
        assert (found.question, found.target_new) == ('"Hey" said Rome to', "Spain")
    with pytest.raises(UserError, match=r"line 2: malformed CSV: .*those in it doubled"):
        read('prompt,subject,target\n"Hey" said {} to,Rome,Spain\n{} is,Oslo,"x, y"\n')


def test_a_cell_of_several_lines_is_one_cell(read):
    (found,) = read('prompt;subject;target\n"Q; {}\nA:";Rome;"Sp""ain"\n')
    assert (found.question, found.target_new) == ("Q; Rome\nA:", 'Sp"ain')
    (found,) = read('target,prompt\nx,"one, two\nthree"\n')
    assert found.prompt == "one, two\nthree"


def test_what_a_spreadsheet_leaves_at_the_end_says_nothing(read):
    for rows in (
        "prompt;subject;target;;\n{} is;Rome;Spain;;\n;;;;\n ; ;;;\n",
        "prompt,subject,target\n{} is,Rome,Spain\n,,\n",
    ):
        (found,) = read(rows)
        assert (found.question, found.target_new) == ("Rome is", "Spain")
    with pytest.raises(UserError, match="line 2: the field '' is unknown"):
        read("prompt;subject;target;;\n{} is;Rome;Spain;x;\n")


def test_spaces_behind_the_commas_are_no_part_of_the_cells(read):
    (found,) = read('prompt, subject, target\n"{} is in", "Rome, old", "Spain"\n')
    assert (found.subject, found.target_new) == ("Rome, old", "Spain")


@pytest.mark.parametrize(
    ("cell", "target", "aliases"),
    [
        ('"[""Spain"", ""Iberia""]"', "Spain", ("Iberia",)),
        ("\"['Spain', 'Iberia']\"", "Spain", ("Iberia",)),  # as pandas writes a list
        ('"[\'It\\\'s\', ""so\'""]"', "It's", ("so'",)),
        ('"[1, 2]"', "[1, 2]", ()),
        ("[INST] so", "[INST] so", ()),
        ("[Spain]", "[Spain]", ()),
    ],
)
def test_a_list_of_texts_in_a_targets_cell_is_a_target_and_its_aliases(read, cell, target, aliases):
    (found,) = read(f"prompt,subject,target\n{{}} is in,Rome,{cell}\n")
    assert (found.target_new, found.aliases) == (target, aliases)


def test_a_list_that_lost_its_commas_is_refused(read):
    with pytest.raises(UserError, match=r"line 2: the field 'target' is .*\['a' 'b'\].*Write \[\"one\", \"two\"\]"):
        read("prompt,subject,target\n{} is,Rome,['a' 'b']\n")  # as numpy writes it


def test_paraphrases_may_be_a_list_of_python_and_may_begin_with_a_bracket(read):
    (found,) = read("prompt,subject,target,paraphrases\n{} is,Rome,x,\"['Rome lies in', 'It is']\"\n")
    assert found.paraphrases == ("Rome lies in", "It is")
    (found,) = read("prompt,subject,target,paraphrases\n{} is,Rome,x,[INST] Rome is [/INST]\n")
    assert found.paraphrases == ("[INST] Rome is [/INST]",)


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("neighbor_answers\n{} is,Rome,x,Norway", "'neighbor_answers' has 1 answer for 0 prompts.*Add what is missing"),
        (
            'neighbors,neighbor_answers\n{} is,Rome,x,"[""a"", ""b"", ""c""]","[""d"", ""e""]"',
            "2 answers for 3 prompts.*leave both out of this record",
        ),
    ],
)
def test_half_of_a_pair_of_columns_is_refused_with_what_to_do(read, pair, words):
    with pytest.raises(UserError, match=rf"line 2: the field .*{words}"):
        read(f"prompt,subject,target,{pair}\n")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ([], r"is list .*'\[\]'.*, which holds no text. Write the text that the model shall say"),
        ([" "], "is list .*which holds no text. Write the text"),
        ({"str": None}, "is dict .*which holds no text"),
        (True, "is bool .*expected str. Correct this record, or leave it out"),
        (None, "is missing or empty .*Write the text that the model shall say"),
    ],
)
def test_a_target_that_is_none_is_refused_with_what_to_do(target, words):
    with pytest.raises(UserError, match=rf"facts\[0\]: the field 'target' {words}"):
        FactList([{"prompt": "{} is", "subject": "Rome", "target": target}]).setup("fit")


def test_whole_numbers_of_a_column_with_gaps_stay_whole_and_gaps_are_none():
    nothing = float("nan")
    facts = [
        {"id": 7.0, "prompt": "{} began in", "subject": "IBM", "target": 1911.0, "target_true": 1899.0},
        {"id": nothing, "prompt": ["{} is"], "subject": ["Rome"], "target": 0.5, "target_true": nothing},
    ]
    data = FactList(facts)
    data.setup("fit")
    first, second = data.requests
    assert (first.case_id, first.target_new, first.target_true) == ("7", "1911", "1899")
    assert (second.case_id, second.question, second.target_new, second.target_true) == ("1", "Rome is", "0.5", None)
