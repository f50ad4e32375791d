"""A request is refused with its place, or brought into the form in which it is asked."""

import pytest

from sphere_pl.data.request import EditRequest
from sphere_pl.data.request_checks import check_request
from sphere_pl.errors import UserError


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"subject": " "}, "the subject is empty"),
        ({"target_new": ""}, "target_new is empty"),
        ({"prompt": "The capital is"}, "does not contain the subject"),
        ({"prompt": "{} and {} are"}, "exactly one"),
        ({"prompt": "The {capital} of {} is"}, "stray braces"),
        ({"prompt": "The capital} of {} is"}, "stray braces"),
    ],
)
def test_a_request_that_cannot_be_edited_is_refused_with_its_place(change, words):
    request = EditRequest("7", "The capital of {} is", "France", "Rome", source="facts.json, line 12")._replace(
        **change
    )
    with pytest.raises(UserError, match=rf"facts.json, line 12: .*{words}"):
        check_request(request)


def test_braces_in_a_subject_are_text():
    request = check_request(EditRequest("0", "The set {} is", "{1, 2}", "finite"))
    assert request.question == "The set {1, 2} is"
    assert request.question[: request.subject_end].endswith("{1, 2}")
