from study.memory import memory_section, quartets
from study.runs import Run
from study.tests.made import make_pairs


def make_quartet():
    runs = make_pairs([0.9, 0.3], [0.9, 0.6, 0.5], "memit", (1,), share=0.27)
    remembering = make_pairs([0.9, 0.8], [0.9, 0.75], "memit", (1,), share=0.18)
    return [*runs, *(Run(run.key._replace(label="memory"), run.found) for run in remembering)]


def test_four_runs_are_compared_where_all_were_scored():
    (quartet,) = quartets(make_quartet())
    assert [run.key.label for run in quartet] == ["", "", "memory", "memory"]
    assert [run.key.variant for run in quartet] == ["plain", "current", "plain", "current"]
    assert quartet.edits == 200


def test_the_section_says_what_memory_and_sphere_do():
    text = "\n".join(memory_section(make_quartet()))
    assert "| memit, draw 1 | 200 | 0.300 | 0.500 | 0.800 | +0.200% | 1.00 |" in text
    assert "| memit current, draw 1 | 200 | 0.600 | 0.500 | 0.800 | +0.200% | 3.00 |" in text
    assert "| memit memory current, draw 1 | 200 | 0.750 | 0.500 | 0.800 | +0.200% | 2.00 |" in text
    assert "efficacy by +50.0 points and brings the updates from 1.00 to 1.00 times chance" in text
    assert "SPHERE alone changes it by +30.0 points, and by -5.0 points where there is a memory." in text


def test_there_is_no_section_without_all_four():
    assert memory_section(make_quartet()[:3]) == []
