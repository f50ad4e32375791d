import pytest

from sphere_pl.text.method_names import display_name, parts_of


@pytest.mark.parametrize(("method", "transforms"), [("ROME", []), ("MEMIT", ["SPHERE"]), ("FT", ["RECT", "SPHERE"])])
def test_an_old_results_file_says_the_same_as_a_new_one(method, transforms):
    assert parts_of(display_name(method, transforms)) == (method, transforms)
