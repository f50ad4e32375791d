"""When a text says an answer."""

import pytest

from sphere_pl.text.matching import answer_words, begins_with, same_answer


@pytest.mark.parametrize(
    ("text", "answers", "hit"),
    [
        ("Paris. It lies on the Seine", ["Paris"], True),
        ("paris", ["PARIS"], True),
        ("the Netherlands, where", ["Netherlands"], True),
        ("Parisian", ["Paris"], False),
        ("a city called Paris", ["Paris"], False),
        ("", ["Paris"], False),
        ("Par", ["Paris"], False),
        ("UK", ["United Kingdom", "UK"], True),
        ("St. Petersburg in Russia", ["St. Petersburg"], True),
        ("Zoë", ["Zoe\u0308"], True),
        ("תל אביב, ישראל", ["תל אביב"], True),
        ("🍕 and more", ["🍕"], True),
        ("🍔", ["🍕"], False),
        ("The The", ["The The"], True),
        ("Ac/DC", ["AC/DC"], True),
        ("A, the best mark", ["A"], True),
        ("an apple", ["a apple"], True),
        ("Paris", [" ", ""], False),
    ],
)
def test_an_answer_begins_with_the_wanted_words(text, answers, hit):
    assert begins_with(text, answers) is hit


def test_articles_alone_are_words():
    assert answer_words("The the") == ["the", "the"]


SIGNS = [
    ("-3.5", "3.5"), ("a - b", "a + b"), ("C++", "C#"), ("C++", "C"), ("$5", "5"), ("$5", "€5"), ("50%", "50"),
    ("42.7", "42"), ("42,000", "42"), ("x == 5", "x = 5"), ("½", "2"), ("🍕", "🍔"), ("🇫🇷", "🇮🇹"), ("−5", "5"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SIGNS)
def test_signs_that_make_it_another_answer_count(one, other):
    assert begins_with(f"{one} or so", [one])
    assert begins_with(f"{other} or so", [other])
    assert not begins_with(f"{one} or so", [other])
    assert not begins_with(f"{other} or so", [one])
    assert same_answer(one, f" {one} ")
    assert not same_answer(one, other)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("**Rome** is", "Rome"), ("“Rome”", "Rome"), ("Berlin Mitte", "Berlin-Mitte"), ("1999-12-31", "1999"),
        ("42, or so", "42"), ("42.", "42"), ("Rome – so", "Rome"), ("= 4", "4"), ("Rome</s>", "Rome"),
        ("Rome", "Rome</s>"), ("Rome", "Rome<|im_end|>"), ("print('x')", 'print("x")'), ("C. elegans", "C"),
        ("(Rome)", "Rome"),
    ],
)  # fmt: skip
def test_punctuation_and_markup_do_not(text, answer):
    assert begins_with(text, [answer])


# ruff: noqa: E501 (wide characters count twice)
@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("파리입니다.", "파리"), ("파리이다", "파리"), ("파리다", "파리"), ("서울에 있다", "서울"), ("서울의 남쪽", "서울"),
        ("도쿄였습니다", "도쿄"), ("이순신 장군으로 알려져", "이순신 장군"), ("Apple입니다", "Apple"), ("1911년에", "1911"),
        ("1911년이다", "1911"), ("김입니다", "김"), ("\u1111\u1161\u1105\u1175\u110b\u1175\u11b8\u1102\u1175\u1103\u1161", "파리"),
    ],
)  # fmt: skip
def test_korean_writes_particles_and_to_be_to_the_end_of_an_answer(text, answer):
    assert begins_with(text, [answer])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("독일인입니다", "독일"), ("서울대학교이다", "서울"), ("경기도", "경기"), ("고양이", "고양"), ("김은", "김"),
        ("파리", "파리입니다"), ("서울에 부산", "서울 부산"), ("500만 명", "500"), ("5万人", "5"), ("5億円", "5"), ("독일의사", "독일"),
    ],
)  # fmt: skip
def test_another_name_or_number_is_none(text, answer):
    assert not begins_with(text, [answer])
