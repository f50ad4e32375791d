"""What `log` says of each edit."""

from sphere_pl.commands.log import Outcomes


def test_an_edit_holds_unless_it_failed_was_skipped_or_was_not_asked():
    results = {
        "failed": [{"edit": 2, "prompt": "after a chat template", "wanted": "Rome", "given": " Paris"}],
        "failed_edits": [2, 3],
        "skipped": [{"cases": ["d"]}],
        "scored": None,
    }
    said = Outcomes(results)
    assert [said(number, case) for number, case in enumerate("abcde", 1)] == [
        "holds", " Paris", "fails", "skipped", "holds"
    ]  # fmt: skip
    assert Outcomes({**results, "edited_again": [4]})(4, "d") == "holds"
    said = Outcomes({**results, "scored": [1, 3]})
    assert [said(number, case) for number, case in enumerate("abcde", 1)] == ["holds", None, "fails", "skipped", None]
    assert Outcomes({})(1, "a") is None
