"""What the project stands on: the oldest releases that are named, and whose warnings are errors."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def _runtime_requirements():
    for file in ("pyproject.toml", "callbacks/pyproject.toml"):
        for line in tomllib.loads((ROOT / file).read_text())["project"]["dependencies"]:
            yield Requirement(line)


def _pins():
    text = (ROOT / ".ci/lowest.txt").read_text()
    return dict(re.findall(r"^([\w-]+)==(\S+)$", text, re.MULTILINE))


def test_the_oldest_releases_are_those_at_the_lower_ends_of_the_ranges():
    pins = _pins()
    wanted = {canonicalize_name(each.name): each for each in _runtime_requirements()}
    del wanted["sphere-callbacks"]
    assert pins.keys() == wanted.keys()
    for name, requirement in wanted.items():
        lowest = next(part.version for part in requirement.specifier if part.operator == ">=")
        assert requirement.specifier.contains(pins[name])
        # `>=4` is met by 4.0.0; a first release may be a .post or a .1, which is then the oldest there is.
        assert pins[name].startswith(lowest), f"{name} {pins[name]} is not the oldest of {requirement.specifier}"


def test_every_range_has_both_ends():
    for requirement in _runtime_requirements():
        assert {part.operator for part in requirement.specifier} >= {">=", "<"}, requirement


WARNS = """
import warnings
import pytest

@pytest.mark.parametrize("category", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
def test_deprecation(category):
    warnings.warn_explicit("soon gone", category, "x.py", 1, module="sphere_pl.editor")

@pytest.mark.parametrize("module", ["sphere_pl.editor", "sphere_callbacks.energy"])
def test_own(module):
    warnings.warn_explicit("mind this", UserWarning, "x.py", 1, module=module)
"""


class Outcomes:
    """Counts what a test run in this process came to."""

    def __init__(self):
        self.failed, self.passed = 0, 0

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            self.failed += report.failed
            self.passed += report.passed


@pytest.mark.parametrize(
    ("options", "failed", "passed"),
    [((), 2, 3), (("-p", "tests.conftest", "--strict-warnings"), 5, 0)],
    ids=["users", "strict"],
)
def test_deprecations_fail_the_strict_run_alone_and_our_own_warnings_every_run(tmp_path, options, failed, passed):
    path, outcomes = tmp_path / "test_warns.py", Outcomes()
    path.write_text(WARNS)
    own = ["-q", "-s", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", "-p", "no:xdist"]
    pytest.main([*own, *options, str(path)], plugins=[outcomes])
    assert (outcomes.failed, outcomes.passed) == (failed, passed)
