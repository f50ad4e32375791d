import re

import pytest

from benchmarks.readme import PAGES, PARTS, fill, filled


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_table_is_what_the_measured_files_say(page):
    text = page.read_text(encoding="utf-8")
    assert filled(text) == text


def test_every_table_has_a_place():
    markers = [
        marker for page in PAGES for marker in re.findall(r"<!-- (\w[\w ]*) -->", page.read_text(encoding="utf-8"))
    ]
    assert sorted(marker for marker in markers if marker in PARTS) == sorted(PARTS)


def test_only_what_stands_between_a_tables_comments_is_replaced():
    text = "before\n<!-- costs -->\nold\n<!-- /costs -->\nafter"
    assert fill(text, "costs", "new") == "before\n<!-- costs -->\nnew\n<!-- /costs -->\nafter"
