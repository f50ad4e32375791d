"""What a run measures and when, without a run around it."""

from dataclasses import replace

import pytest

from sphere_pl.data.chat import chat_form
from sphere_pl.data.request import EditRequest
from sphere_pl.errors import UserError
from sphere_pl.evaluation.cases import answer_facts, case_prompts, failed_edits
from sphere_pl.evaluation.evaluator import Evaluator, score_requests
from sphere_pl.evaluation.sample import AGES, age_of, fixed_sample
from sphere_pl.evaluation.scored import to_plain
from sphere_pl.evaluation.settings import EvaluationSettings
from sphere_pl.model.tokens import in_context
from tests.cases.scripted import ScriptedModel
from tests.conftest import make_tokenizer

TEACHER_FORCED = EvaluationSettings(protocols=["teacher_forced"], perplexity_tokens=0, batch_size=3)


def untracked(items, description, total):
    return items


def validate(evaluator, lm, edits, start, last, unedited=()):
    evaluator.begin(edits, start, last)
    for batch in evaluator.batches():
        evaluator.add(lm, batch, dict(unedited))
    return evaluator.scores(lm)


def whole(text):
    """What is shown of a text that is cut inside a character."""
    return text.rstrip("\ufffd")


@pytest.fixture
def many(rich):
    return [r._replace(case_id=f"{turn}-{r.case_id}", subject=f"{r.subject} {turn}") for turn in range(3) for r in rich]


def test_a_sample_is_fixed_nested_and_keeps_what_it_can():
    assert fixed_sample(50, 10, 0) == fixed_sample(50, 10, 0) != fixed_sample(50, 10, 1)
    assert set(fixed_sample(50, 5, 0)) < set(fixed_sample(50, 10, 0))
    early, late = set(fixed_sample(40, 10, 0)), set(fixed_sample(80, 10, 0))
    assert late & set(range(40)) <= early
    assert fixed_sample(3, 10, 0) == [0, 1, 2]


@pytest.mark.parametrize("edits", [1, 2, 3, 7, 100])
def test_ages_are_thirds_of_the_edits_so_far(edits):
    ages = [age_of(place, edits) for place in range(edits)]
    assert ages == sorted(ages, key=AGES.index)
    assert max(map(ages.count, AGES)) - min(map(ages.count, AGES)) <= 1


def test_accuracy_by_age_is_that_of_each_third_alone(tiny_lm, many):
    lm, evaluator = tiny_lm(), Evaluator(TEACHER_FORCED)
    evaluator.plan(many)
    logged = evaluator.scalars(validate(evaluator, lm, edits=9, start=6, last=True))
    for third, age in enumerate(AGES):
        alone = score_requests(lm, many[3 * third : 3 * third + 3], TEACHER_FORCED)
        for name in ("efficacy", "generalization"):
            assert logged[f"retention/{age}/{name}"] == pytest.approx(alone[name].value)
    everything, batch = score_requests(lm, many[:9], TEACHER_FORCED), score_requests(lm, many[6:9], TEACHER_FORCED)
    for name in ("efficacy", "generalization", "specificity", "portability"):
        assert logged[f"val/{name}"] == pytest.approx(everything[name].value)
        assert logged[f"batch/{name}"] == pytest.approx(batch[name].value)


def test_during_the_run_a_sample_is_scored_beside_the_last_batch_and_all_at_the_end(tiny_lm, many):
    evaluator = Evaluator(EvaluationSettings(protocols=["teacher_forced"], perplexity_tokens=0, validation_records=4))
    evaluator.plan(many)
    evaluator.begin(edits=12, batch_start=10, last=False)
    sample = set(fixed_sample(12, 4, seed=0))
    assert [place for batch in evaluator.batches() for place in batch.places] == sorted(sample | {10, 11})
    validate(evaluator, tiny_lm(), 12, 10, last=False)
    assert (evaluator.everything.efficacy.count, evaluator.latest.efficacy.count) == (4, 2)
    validate(evaluator, tiny_lm(), 12, 10, last=True)
    assert (evaluator.everything.efficacy.count, evaluator.latest.efficacy.count) == (12, 2)


def test_of_the_edits_of_an_earlier_run_a_fixed_few_are_scored_and_all_later_ones(tiny_lm, many):
    few, lm = replace(TEACHER_FORCED, earlier=2, facts=50), tiny_lm()
    evaluator = Evaluator(few)
    unedited = evaluator.measure_unedited(lm, many[:9], untracked, inherited=6)
    expected = [*fixed_sample(6, 2, seed=0), 6, 7, 8]
    assert sorted(unedited.neighbors) == evaluator.scorable(9) == expected
    assert unedited.facts == []  # these would be all of them
    validate(evaluator, lm, edits=9, start=8, last=True, unedited=unedited.neighbors)
    assert evaluator.everything.efficacy.count == len(expected)
    alone = score_requests(lm, [many[place] for place in expected], TEACHER_FORCED)
    assert evaluator.everything.summary()["efficacy"] == alone["efficacy"]


def test_the_other_protocols_are_scored_before_and_at_the_end_only(tiny_lm, rich):
    lm, evaluator = tiny_lm(), Evaluator(EvaluationSettings(perplexity_tokens=0, sample=2, texts=3))
    unedited = evaluator.measure_unedited(lm, rich, untracked)
    during = validate(evaluator, lm, 4, 2, False, unedited.neighbors)
    end = validate(evaluator, lm, 4, 2, True, unedited.neighbors)
    wanted = {"probability/efficacy", "probability/specificity_magnitude", "generation/efficacy", "fluency"}
    assert wanted <= set(unedited.scores)
    assert not wanted & set(during)
    assert to_plain(end) == pytest.approx(to_plain(unedited.scores))  # the model has not changed
    assert end["neighborhood_agreement"].value == 1.0
    logged = evaluator.scalars(end)
    assert logged["val/probability/efficacy"] == end["probability/efficacy"].value
    assert not any(name.endswith("standard_error") for name in logged)


def test_only_the_chosen_protocols_are_scored(tiny_lm, rich):
    found = score_requests(tiny_lm(), rich, EvaluationSettings(protocols=["teacher_forced", "generation"]))
    assert "generation/efficacy" in found
    assert not any(name.startswith("probability") for name in found)


def test_records_that_share_a_case_id_are_scored_each(tiny_lm, rich):
    same = [r._replace(case_id="7") for r in rich]
    assert score_requests(tiny_lm(), same, TEACHER_FORCED) == score_requests(tiny_lm(), rich, TEACHER_FORCED)


def test_without_the_unedited_answers_there_is_no_agreement(tiny_lm, rich):
    assert "neighborhood_agreement" not in score_requests(tiny_lm(), rich, TEACHER_FORCED)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"protocols": ["generation"]}, "must hold teacher_forced"),
        ({"protocols": ["teacher_forced", "judge"]}, "judge"),
        ({"sample": -1}, "evaluation.sample=-1"),
        ({"validation_records": 0}, "must be at least 1"),
        ({"batch_size": 0}, "evaluation.batch_size=0"),
    ],
)
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        EvaluationSettings(**settings)


def test_failed_edits_say_what_the_model_answers(tiny_lm, slow, requests):
    lm = tiny_lm()
    said = slow.write(lm, requests[0].question, 16).split()
    right = requests[0]._replace(target_new="nothing", aliases=tuple(said[:1]))
    failed = failed_edits(lm, [right, *requests[1:]])
    assert [each["case_id"] for each in failed] == ["1", "2", "3"]
    assert failed[0] == {
        "case_id": "1",
        "subject": "Rome",
        "prompt": "Rome is a city in",
        "wanted": "Norway",
        "given": whole(slow.write(lm, "Rome is a city in", 16)),
    }


def test_at_most_fifty_failed_edits_are_listed(tiny_lm, requests):
    many = [requests[1]._replace(case_id=str(number)) for number in range(60)]
    assert [each["case_id"] for each in failed_edits(tiny_lm(), many)] == [str(number) for number in range(50)]
    assert failed_edits(tiny_lm(), []) == []


def test_cases_show_the_prompt_before_and_after(tiny_lm, slow, rich):
    old, new = tiny_lm(seed=0), tiny_lm(seed=1)
    evaluator = Evaluator(EvaluationSettings(perplexity_tokens=0, sample=0, cases=2))
    unedited = evaluator.measure_unedited(old, rich, untracked)
    places = fixed_sample(4, 2, seed=0)
    cases = evaluator.cases(new, unedited.cases)
    prompts = [(each.prompt, each.wanted) for each in case_prompts([rich[place] for place in places])]
    assert [(case["prompt"], case["wanted"]) for case in cases] == prompts
    assert [case["before"] for case in cases] == [whole(slow.write(old, text, 16)) for text, _ in prompts]
    assert [case["after"] for case in cases] == [whole(slow.write(new, text, 16)) for text, _ in prompts]


def test_facts_are_asked_in_chat_form_beside_their_own_unless_they_are_typed_in_one():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for turn in messages %}<ask>{{ turn.content }}<say>{% endfor %}"
    plain = EditRequest("0", "{} is in", "Rome", "Spain")
    typed = EditRequest("1", "<|user|>Where is {}?<|end|>", "Oslo", "Peru")
    says = [in_context(each, "", each.target_new) for each in (plain, typed)]
    says.append(in_context(plain._replace(form=chat_form(tokenizer)), "", "Italy"))
    evaluator = Evaluator(EvaluationSettings(protocols=["teacher_forced", "chat"], perplexity_tokens=0, facts=2))
    evaluator.plan([plain, typed])
    evaluator.begin(2, 0, last=True)
    first, second = evaluator.facts(ScriptedModel(tokenizer, says), ["Italy", "Norway"])
    assert (first["right"], first["chat_after"], first["chat_right"]) == (True, "Italy", False)
    assert second["right"]
    assert "chat_after" not in second
    assert evaluator.sampled_scores(ScriptedModel(tokenizer, says))["chat/efficacy"].value == 0.0


def test_an_answer_is_shown_without_the_half_of_a_character_that_it_was_cut_at():
    tokenizer = make_tokenizer()
    requests = [EditRequest("0", f"{{}} {letters} is", "Rome", "柏林") for letters in ("a", "b", "c", "d")]
    texts = [f"{'a' * extra}{'柏林' * 9}" for extra in range(4)]
    lm = ScriptedModel(tokenizer, [in_context(*each) for each in zip(requests, [""] * 4, texts, strict=True)])
    for answer, text in zip(answer_facts(lm, requests), texts, strict=True):
        assert answer
        assert text.startswith(answer)
