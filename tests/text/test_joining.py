"""What stands between a prompt and its answer, in every script."""

import pytest

from sphere_pl.text.joining import asked, joined, opens_with_template, separator
from sphere_pl.text.scripts import words

DIRECTLY = [
    ("埃及的首都是", "柏林"),  # EasyEdit #163, #165
    ("日本の首都は", "東京"),
    ("日本の首都はどこですか？", "東京"),
    ("เมืองหลวงของไทยคือ", "กรุงเทพ"),
    ("ນະຄອນຫຼວງຂອງລາວແມ່ນ", "ວຽງຈັນ"),
    ("រាជធានីនៃកម្ពុជាគឺ", "ភ្នំពេញ"),
    ("မြန်မာနိုင်ငံ၏မြို့တော်မှာ", "နေပြည်တော်"),
    ("བོད་ཀྱི་རྒྱལ་ས་ནི་", "ལྷ་ས"),
    ("故宫建成于", "1420"),
    ("他生于1949", "年"),
    ("iPhone的制造商是", "Apple"),
    ("Microsoft Office Word的制造商是", "Apple"),
    ("答案：", "Paris"),
    ("《静夜思》的作者是“", "李白"),
    ('He said "', "yes"),
    ("It is (", "so"),
    ("Er las „", "Faust"),
    ("Il a dit «", "oui"),
    ("The Spider-", "Man"),
    ("La capitale de l'", "Italie"),
    ("La capitale dell’", "Italia"),
    ("It costs $", "5"),
    ("2+2=", "4"),
    ("https://", "example.org"),
    ("<|im_start|>assistant\n", "Oslo"),
    ("<|assistant|>", "Oslo"),
    ("<｜Assistant｜>", "Oslo"),
    ("[/INST]", "Oslo"),
    ("איינשטיין נולד ב", "רומא"),
    ("يقع في ال", "قاهرة"),
    ("A:\t", "Oslo"),
    ("می\u200c", "خواهم"),
    ("תל־", "אביב"),
    ("Zoe", "\u0308"),
    ("It is so", ", indeed"),
    ("It is 95", "%"),
    ("", "Paris"),
]  # fmt: skip
WITH_A_SPACE = [
    ("The capital of France is", "Paris"),
    ("Where is it?", "In Rome"),
    ("The answer:", "42"),
    ("The framework is", ".NET"),
    ('He said "yes"', "again"),
    ("The dogs'", "bowl"),
    ("C++", "is"),
    ("C#", "is"),
    ("He is —", "so"),
    ("Le titre est « Faust »", "de Goethe"),
    ("عاصمة مصر هي", "الجيزة"),
    ("הבירה של ישראל היא", "ירושלים"),
    ("भारत की राजधानी है", "दिल्ली"),
    ("프랑스의 수도는", "파리"),
    ("Столица России", "Москва"),
    ("The capital of 日本 is", "東京"),
    ("The meaning of 罗马帝国", "Rome"),
    ("I love 🍕", "pizza"),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "target"), DIRECTLY)
def test_nothing_stands_between_what_is_written_together(prompt, target):
    assert joined(prompt, target) == prompt + target


@pytest.mark.parametrize(("prompt", "target"), WITH_A_SPACE)
def test_a_space_stands_between_words(prompt, target):
    assert joined(prompt, target) == f"{prompt} {target}"


@pytest.mark.parametrize("joiner", ["", " ", "\n", "\u3000"])
def test_a_record_may_say_otherwise(joiner):
    assert joined("The capital is", "Paris", joiner) == f"The capital is{joiner}Paris"


def test_white_space_that_ends_a_prompt_belongs_to_it_but_for_the_one_space_of_the_answer():
    for prompt in ("Answer:\n", "Answer:\n\n", "Answer:  ", "答案： ", "法国的首都是 ", "A:\t"):
        assert asked(prompt) == prompt
        assert separator(prompt, "Paris") == ""
    assert asked("The capital is ") == "The capital is"
    assert asked("The capital is ", "") == "The capital is "


def test_a_typed_template_is_seen_and_prose_is_not():
    for text in ("<|im_start|>user\nHi", "<s>[INST] Hi", "[INST] Hi", "<start_of_turn>user\nHi", "<｜User｜>Hi"):
        assert opens_with_template(text)
    for text in ("The <|im_start|>", "x < y > z", "Hi"):
        assert not opens_with_template(text)


@pytest.mark.parametrize("prompt", ["<start_of_turn>model", "<|im_start|>assistant", "<｜Role｜>Assistant"])
def test_the_name_of_who_speaks_next_is_followed_by_the_newline_of_its_template(prompt):
    assert joined(prompt, "Oslo") == f"{prompt}\nOslo"
    assert joined(f"{prompt}\n", "Oslo") == f"{prompt}\nOslo"
    assert joined("The assistant", "Oslo") == "The assistant Oslo"


def test_words_keep_the_vowel_signs_of_every_script_and_no_optional_ones():
    assert words("दिल्ली") != words("दल्ला")
    assert words("กู") != words("ก")
    assert words("القَاهِرَةُ") == words("القاهرة")
    assert words("İstanbul’da") == ["i̇stanbul", "da"]
    assert words("柏林。它") == ["柏", "林", "它"]
