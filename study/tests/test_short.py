from study.short import SAME, draw_effects, effects, in_short
from study.tests.made import make_pairs


def test_the_page_begins_with_what_sphere_does_for_each_method():
    runs = make_pairs([0.8] * 8, [0.8] * 8, draws=(1, 2), share=0.18)
    runs += make_pairs([0.2] * 8, [0.8] * 8, "rome", draws=(1,)) + make_pairs([0.8] * 8, [0.2] * 8, "ft", draws=(1,))
    text = in_short(runs)
    assert "- **Higher with SPHERE**: rome 0.20 → 0.80 after 800 (1.0)\n" in text
    assert "- **lower with SPHERE**: ft 0.80 → 0.20 after 800 (1.0)\n" in text
    assert "- **no difference seen**: alphaedit 0.80 → 0.80 after 800 (1.0)\n" in text
    assert in_short([]) == ""


def test_updates_are_counted_once_and_what_was_measured_before_them_is_none():
    runs = make_pairs([0.8] * 3, [0.8] * 2, draws=(1,))
    for run in runs:
        batches = run.found["batches"]
        batches |= {name: [values[0], *values, values[-1]] for name, values in batches.items()}
        batches["edits"][0] = 0.0
    (effect,) = effects(runs)
    assert (effect.edits, effect.updates, effect.word) == ("200", 2, SAME)


def test_effects_are_drawn(tmp_path):
    runs = make_pairs([0.8] * 8, [0.7] * 8)
    assert draw_effects(runs, tmp_path / "short.png").read_bytes().startswith(b"\x89PNG")
