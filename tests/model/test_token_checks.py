"""Requests that a tokenizer or a model cannot take are refused with their record."""

import pytest

from sphere_pl.data.request import EditRequest
from sphere_pl.errors import UserError
from sphere_pl.model.token_checks import check_probes
from tests.conftest import make_tokenizer

LONG = "The capital of France is Paris " * 9


@pytest.mark.parametrize(
    "probe",
    [
        {"paraphrases": ("Rome is", LONG)},
        {"paraphrases": ("The capital of France is",), "target_new": LONG},
        {"target_true": LONG},
        {"paraphrases": ("The capital of France is",), "target_true": "Paris " * 16},
        {"neighbors": ("Oslo is", LONG)},
        {"neighbors": ("Oslo is",), "neighbor_answers": (LONG,)},
        {"portability": (LONG,)},
        {"portability": ("So",), "portability_answers": ((LONG, "no"),)},
    ],
)
def test_a_probe_longer_than_the_context_is_refused_with_its_record(probe):
    tokenizer = make_tokenizer(bos=True)
    request = EditRequest("7", "{} is", "Rome", "Spain", source="facts.json, line 3")._replace(**probe)
    check_probes(tokenizer, request, 128)
    with pytest.raises(UserError, match=r"facts.json, line 3: a paraphrase, neighbour or other probe, .*at most 20\."):
        check_probes(tokenizer, request, 20)


def test_a_probe_that_fits_exactly_is_taken():
    tokenizer = make_tokenizer(bos=True)
    request = EditRequest("7", "{} is", "Rome", "Spain", paraphrases=("Zz qq xx ß",))
    length = len(tokenizer("Zz qq xx ß Spain")["input_ids"])
    check_probes(tokenizer, request, length)
    with pytest.raises(UserError, match=f"has {length} tokens"):
        check_probes(tokenizer, request, length - 1)
