"""Every command and every line of Python in the README is run, or parsed where a run would need the network."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def docs_blocks(name):
    return re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / f"{name}.md").read_text(), re.DOTALL)


COMMANDS = [
    line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines() if "sphere_pl fit" in line
]
DOCS = sorted(
    {
        line.split("#")[0].strip()
        for page in (ROOT / "docs").glob("*.md")
        for line in page.read_text().splitlines()
        if line.strip().startswith("python -m sphere_pl fit")
    }
)
SUGGESTED = "--model.layers=[4,5,6,7,8]"  # what a `$(... locate --locate ...)` stands for
LOCATE = re.findall(r"python -m sphere_pl (locate [^)#\n]*)", "\n".join(blocks("bash") + docs_blocks("locate")))


@pytest.mark.parametrize("command", [*COMMANDS, *DOCS])
def test_every_command_is_understood(command, monkeypatch, capsys):
    from sphere_pl.commands import main

    command = re.sub(r"\$\(.*?\)", SUGGESTED, command.split("&&")[-1])
    words = shlex.split(command.replace("<hub id or folder>", "some/model"))
    assert words[:4] == ["python", "-m", "sphere_pl", "fit"]
    monkeypatch.setattr(sys, "argv", ["sphere_pl", *words[3:], "--print_config"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert "class_path" in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(set(LOCATE)))
def test_every_locate_command_is_understood(command, monkeypatch, capsys):
    from sphere_pl.commands import main

    words = shlex.split(command.replace("<hub id or folder>", "some/model"))
    monkeypatch.setattr(sys, "argv", ["sphere_pl", *words, "--print_config"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert "samples" in capsys.readouterr().out


def test_every_experiment_has_a_command():
    named = {name for command in COMMANDS for name in re.findall(r"--config (experiment/\w+)", command)}
    assert named == {f"experiment/{path.stem}" for path in (ROOT / "conf" / "experiment").glob("*.yaml")}


def test_the_commands_are_found():
    assert len(COMMANDS) >= 13
    assert len(set(LOCATE)) >= 3
    assert len(blocks("python")) == 1


def test_every_file_that_is_linked_exists():
    """The source archive leaves the study out."""
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists() or (target.startswith("study/") and not (ROOT / "study").exists()), target


def test_the_citation_names_this_version_and_the_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    (paper,) = cited["references"]
    (bibtex,) = blocks("bibtex")
    for part in (paper["title"], paper["url"], *(author["family-names"] for author in paper["authors"])):
        assert part in bibtex


def test_every_benchmark_that_is_named_answers():
    for module in sorted(set(re.findall(r"python -m (benchmarks[.\w]*|study)", README))):
        done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()


@pytest.mark.slow
def test_the_python_of_the_first_screen_runs(tmp_path):
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 8
    out = _output(code, tmp_path)
    row = re.search(r"│ efficacy +│ ([\d.]+) ± [\d.]+ │ +([\d.]+) ±", out)
    assert float(row[2]) > float(row[1]), out
    assert list(tmp_path.iterdir()) == [tmp_path / "readme.py"]


@pytest.mark.slow
def test_the_python_with_a_trainer_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    before, after = re.fullmatch(r"([\d.]+) -> ([\d.]+)", _output(code, tmp_path).strip().splitlines()[-1]).groups()
    assert float(after) > float(before)


def _output(code, folder):
    """What a script writes, run in a folder of its own."""
    script = folder / "readme.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, script], cwd=folder, capture_output=True, encoding="utf-8", check=True, env=environment
    )
    return done.stdout
