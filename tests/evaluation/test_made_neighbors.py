import pytest

from sphere_pl.data.request import EditRequest
from sphere_pl.data.request_checks import check_request
from sphere_pl.evaluation import made_neighbors
from sphere_pl.evaluation.cases import answer_facts
from sphere_pl.evaluation.evaluator import Evaluator
from sphere_pl.evaluation.made_neighbors import MOST, ask_edited, ask_unedited, count_made, made_prompts
from sphere_pl.evaluation.protocols import generation_scores
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.model import generation

SETTINGS = EvaluationSettings(perplexity_tokens=0, protocols=["teacher_forced"], cases=1)


def untracked(items, description, total):
    return items


@pytest.fixture
def bare():
    return [
        EditRequest("0", "{} lies in", "Rome", "Spain"),
        EditRequest("1", "{} lies in", "Oslo", "Italy"),
        EditRequest("2", "The owner of the {} drill is", "Halvorsen X200", "Bosch"),
        EditRequest("3", "{} lies in", "Bergen", "Chile", neighbors=("Paris lies in",), neighbor_answers=("France",)),
    ]


def test_made_neighbours_are_the_records_own_prompt_about_somebody_else(bare):
    made = made_prompts(bare, 4, seed=0)
    assert set(made) == {0, 1, 2}  # the last gives its own
    edited = {request.question for request in bare}
    for place, prompts in made.items():
        before, after = bare[place].prompt.split("{}")
        assert len(prompts) == len(set(prompts)) == 4
        assert all(prompt.startswith(before) and prompt.endswith(after) for prompt in prompts)
        assert not edited & set(prompts), "an edited prompt is no neighbour"
    others = {request.subject for request in bare if request is not bare[2]}
    assert sum(any(subject in prompt for subject in others) for prompt in made[2]) == 2  # half are the file's own


def test_they_depend_on_record_and_seed_alone(bare):
    assert made_prompts(bare, 3, 0) == made_prompts(bare, 3, 0) != made_prompts(bare, 3, 1)
    assert made_prompts(bare, 0, 0) == {}


def test_many_records_get_them_on_a_sample(bare):
    many = [bare[0]._replace(subject=f"Town {number}") for number in range(MOST + 40)]
    assert len(made_prompts(many, 1, 0)) == MOST
    assert count_made(many, 1, 0).line().startswith(f"Side effects: {MOST + 40} of {MOST + 40} records give no neigh")
    assert count_made(bare[3:], 1, 0).line() == ""


def test_they_count_for_agreement_alone(tiny_lm, bare):
    old, new, evaluator = tiny_lm(seed=0), tiny_lm(seed=1), Evaluator(SETTINGS)
    unedited = evaluator.measure_unedited(old, bare[:3], untracked)
    assert unedited.scores["neighborhood_agreement"].value == 1.0
    assert "specificity" not in unedited.scores
    same = evaluator.score_end(old, 3, 0, unedited.neighbors)
    other = evaluator.score_end(new, 3, 0, unedited.neighbors)
    assert same["neighborhood_agreement"].value == 1.0
    assert other["neighborhood_agreement"].value < 1.0
    assert "specificity" not in other
    kinds = [case["kind"] for case in evaluator.cases(new, unedited.cases)]
    assert kinds == ["edit", "neighbor"]


def test_given_neighbours_stay_as_they_are_and_none_are_made_when_turned_off(tiny_lm, bare):
    lm, off = tiny_lm(), EvaluationSettings(perplexity_tokens=0, protocols=["teacher_forced"], made_neighbors=0)
    assert "neighborhood_agreement" not in Evaluator(off).measure_unedited(lm, bare[:3], untracked).scores
    with_own = [bare[3]]
    on = Evaluator(SETTINGS).measure_unedited(lm, with_own, untracked)
    assert on.scores == Evaluator(off).measure_unedited(lm, with_own, untracked).scores


@pytest.mark.parametrize(("prompt", "joiner"), [("{} lies in ", ""), ("{} lies in", "\n")])
def test_they_and_free_answers_are_asked_with_the_records_own_joiner(tiny_lm, monkeypatch, bare, prompt, joiner):
    lm, put = tiny_lm(), []
    request = check_request(bare[0]._replace(prompt=prompt, joiner=joiner))
    monkeypatch.setattr(
        generation, "generate", lambda _, texts, *__, **___: put.extend(texts) or ["Spain"] * len(texts)
    )
    (made,) = ask_unedited(lm, [request], {0: [request.question]})[0]
    assert made.joiner == joiner
    assert answer_facts(lm, [request]) == ["Spain"]
    assert generation_scores(lm, [request])["efficacy"].value == 1.0
    assert put == [prompt.replace("{}", "Rome")] * 3
    ((again,),) = ask_edited(lm, [[made]])
    assert again.predicted == made.predicted
    assert made_neighbors._prompt(*made[:2], made.joiner).whole == f"{prompt.replace('{}', 'Rome')}{joiner}Spain"
