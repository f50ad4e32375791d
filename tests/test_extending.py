"""What docs/extending.md shows works as it stands: a copy of the package is given its files, and a run uses them."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import sphere_pl
from sphere_pl.model.known import config_folder

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
FILE = re.compile(r"^(New|Changed): `([^`]+)`\n\n((?:```\w+\n.*?^```\n\n?)+)", re.DOTALL | re.MULTILINE)
BLOCK = re.compile(r"^```\w+\n(.*?)^```", re.DOTALL | re.MULTILINE)
FACTS = [{"head": head, "relation": "The capital of {} is", "tail": tail} for head, tail in
         (("France", "Berlin"), ("Norway", "Rome in Italy"))]  # fmt: skip
# What keeps the run small, whatever it edits with.
SMALL = """
model: {layers: [1, 2], dtype: float32, contexts: 1, targets: {steps: 3}, evaluation: {perplexity_tokens: 32}}
data: {name: triples, path: facts.jsonl, batch_size: 1}
trainer: {accelerator: cpu}
"""


class File(NamedTuple):
    """A file of an example, and the blocks that the page has of it."""

    kind: str
    path: str
    blocks: list[str]


def examples():
    """The page's sections with their files."""
    sections = PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
    return {
        section.splitlines()[0]: [File(kind, path, BLOCK.findall(text)) for kind, path, text in FILE.findall(section)]
        for section in sections
    }


def apply(change, text):
    """Make the change that a block of added, removed and kept lines describes; it must fit in one place."""
    lines = [(line[:1] or " ", line[1:]) for line in change.splitlines()]
    old, new = ("".join(f"{line}\n" for mark, line in lines if mark in f" {side}") for side in "-+")
    assert text.count(old) == 1, f"{text.count(old)} places for:\n{old}"
    return text.replace(old, new)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the package with the page's files in it, and a working folder with those of the user."""
    folder = tmp_path_factory.mktemp("house")
    shutil.copytree(Path(sphere_pl.__file__).parent, folder / "sphere_pl", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(config_folder(), folder / "conf", dirs_exist_ok=True)
    (folder / "work").mkdir()
    for kind, path, blocks in (file for files in examples().values() for file in files):
        target = folder / path if path.startswith("sphere_pl/") else folder / "work" / path
        assert target.exists() == (kind == "Changed"), path
        text = target.read_text(encoding="utf-8") if kind == "Changed" else ""
        for block in blocks:
            text = apply(block, text) if kind == "Changed" else block
        target.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def program(house):
    """Run a command of the copy in the working folder: `program("fit", ...)` returns what it prints."""

    def run(*words):
        paths = [str(house), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        variables = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "WANDB_MODE": "disabled", "COLUMNS": "120"}
        command = [sys.executable, "-m", "sphere_pl", *words]
        done = subprocess.run(
            command, cwd=house / "work", env=variables, capture_output=True, text=True, encoding="utf-8", check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize(
    ("section", "most"), [("A method", 2), ("A callback", 2), ("A data format", 2), ("A metric", 4)]
)
def test_an_addition_costs_few_files(section, most):
    files = examples()[section]
    assert 0 < len(files) <= most
    assert all(file.blocks for file in files)


def test_the_page_says_how_many_files_there_are():
    rows = re.findall(r"^\| (a [\w ]+) \| (\d)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {f"{row[0].upper()}{row[1:]}": int(count) for row, count in rows} == {
        section: len(files) for section, files in examples().items()
    }


def test_a_run_uses_all_that_the_page_adds(house, program, model_folder):
    work = house / "work"
    (work / "facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in FACTS), encoding="utf-8")
    (work / "small.yaml").write_text(SMALL, encoding="utf-8")
    configs = [word for name in ("small", "ridge", "clip") for word in ("--config", f"{name}.yaml")]
    shown = program("fit", *configs, "--model.name", str(model_folder), "--run_dir", "run")
    results = json.loads((work / "run" / "results.json").read_text(encoding="utf-8"))
    assert (results["edits"], results["method_name"]) == (2, "Ridge")
    assert sorted(results["transforms"]) == ["CLIP", "SPHERE"]
    assert results["clipped"]["updates"] == 4  # two batches, two matrices
    assert results["before"].keys() >= {"token_accuracy", "token_accuracy_standard_error"}
    assert results["after"]["token_accuracy"] >= results["after"]["efficacy"]
    with (work / "run" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        assert {"val/token_accuracy", "batch/token_accuracy"} <= set(next(csv.reader(file)))
    page = (work / "run" / "report.html").read_text(encoding="utf-8")
    assert "tokens of the new answer that the model gives" in page
    assert all("token accuracy" in text for text in (shown, page))
