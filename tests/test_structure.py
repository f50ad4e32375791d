"""The house itself: imports go one way, the callbacks stand alone, and nothing rests on the study."""

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]

# A room imports from those before it; see docs/architecture.md.
ROOMS = [
    "errors",
    "text",
    "process",
    "trainers",
    "progress",
    "storage",
    "data",
    "methods",
    "model",
    "editing",
    "evaluation",
    "history",
    "tuning",
    "editor",
    "report",
    "run",
    "abilities",
    "tracing",
    "commands",
    "api",
    "serving",
    "__main__",
]


def files(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path):
    """Dotted names of all that a module imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_rooms_import_downwards_only():
    for path in files("sphere_pl"):
        mine = path.relative_to(ROOT / "sphere_pl").parts[0].removesuffix(".py")
        for name in imports(path):
            other = f"{name}.".split(".")[1] if name.startswith("sphere_pl.") else ""
            if mine != "__init__" and other:
                assert ROOMS.index(other) <= ROOMS.index(mine), f"{path.relative_to(ROOT)} imports {name}"


def test_no_room_imports_the_face_of_the_package_which_stands_above_all_of_them():
    for path in files("sphere_pl"):
        assert "sphere_pl" not in set(imports(path)), f"{path.relative_to(ROOT)} imports sphere_pl"


def test_the_line_of_rooms_stands_in_the_documents():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    line = re.search(r"```\n(errors <.*?)```", page, re.DOTALL)[1]
    assert line.replace("<", " ").split() == ROOMS


def test_the_tree_in_the_documents_names_every_room_and_only_what_is_there():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = re.search(r"```\nsphere_pl/\n(.*?)```", page, re.DOTALL)[1]
    named = re.findall(r"^  (\w+)(?:/|\.py)", tree, re.MULTILINE)
    assert sorted(named) == sorted(set(ROOMS) - {"__main__"})
    there = {path.name for path in files("sphere_pl", "callbacks", "benchmarks", "tests")}
    assert set(re.findall(r"\w+\.py", page)) <= there


def test_the_callbacks_need_nothing_of_the_framework():
    heavy = {"sphere_pl", "transformers", "datasets", "wandb"}
    for path in files("callbacks/sphere_callbacks"):
        assert not {name.split(".")[0] for name in imports(path)} & heavy, path.name


def test_no_module_names_a_device_prints_or_has_a_global():
    for path in files("sphere_pl", "callbacks/sphere_callbacks"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert not (isinstance(node.func, ast.Attribute) and node.func.attr == "cuda"), path.name
                assert not (isinstance(node.func, ast.Name) and node.func.id == "print"), path.name
            assert not isinstance(node, ast.Global), path.name


def test_nothing_rests_on_the_study():
    house = files("sphere_pl", "callbacks", "benchmarks", "examples", "tests")
    assert [path for path in house if "study" in {name.split(".")[0] for name in imports(path)}] == []
    assert not list((ROOT / "conf").rglob("*study*"))


def test_the_study_is_in_no_archive_and_not_in_the_default_test_run():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    targets = tool["hatch"]["build"]["targets"]
    assert "/study" in targets["sdist"]["exclude"]
    assert targets["wheel"]["packages"] == ["sphere_pl"]
    assert not any(path.startswith("study") for path in tool["pytest"]["ini_options"]["testpaths"])
