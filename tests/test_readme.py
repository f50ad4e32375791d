"""Commands, Python, records and links of the README and of docs/: run, or parsed where a run would need the network."""

import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
README, INDEX = PAGES["README.md"], PAGES["docs/README.md"]
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"  # in the Python of the first screen
SUGGESTED = "--model.layers=[4,5,6,7,8]"  # what a `$(... locate --locate ...)` stands for


def blocks(language, *pages):
    return re.findall(rf"```{language}\n(.*?)```", "\n".join(pages or [README]), re.DOTALL)


def lines(*pages):
    """Every line of Bash, without its comment, and those of the blocks that are set apart by four spaces."""
    indented = re.findall(r"^    (python .*)$", "\n".join(pages), re.MULTILINE)
    return [line.split(" #")[0].strip() for block in blocks("bash", *pages) for line in block.splitlines()] + indented


COMMANDS = [line for line in lines(*PAGES.values()) if line.startswith("python -m sphere_pl fit")]
LOCATE = re.findall(r"python -m sphere_pl (locate [^)#\n]*)", "\n".join(lines(*PAGES.values())))


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_every_command_is_understood(command, parsed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r"--run_dir (\S+) --ckpt_path", command):  # there must be a run to resume
        Path(name).mkdir(parents=True)
        (Path(name) / "config.yaml").write_text("{}")
    command = re.sub(r"\$\(.*?\)", SUGGESTED, command.split("&&")[-1])
    words = shlex.split(command.replace("<hub id or folder>", "some/model"))
    words = [word for word in words if not word.startswith("--print_config")]
    assert words[:4] == ["python", "-m", "sphere_pl", "fit"]
    assert "class_path" in parsed(*words[4:])["model"]["method"]


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


@pytest.mark.parametrize("group", ["method", "callbacks"])
def test_every_file_of_a_group_stands_in_its_table(group):
    page = PAGES["docs/methods.md" if group == "method" else "docs/callbacks.md"]
    table = re.findall(rf"^\| `({group}/\w+)`", page, re.MULTILINE)
    assert sorted(table) == sorted(f"{group}/{path.stem}" for path in (ROOT / "conf" / group).glob("*.yaml"))


def test_the_commands_are_found():
    assert len(COMMANDS) >= 30
    assert len([line for line in lines(README) if line.startswith("python -m sphere_pl fit")]) >= 6
    assert len(set(LOCATE)) >= 3
    assert len(blocks("python")) == 1


def test_the_readme_is_short():
    assert len(README.encode()) <= 8500


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_linked_exists(page):
    """The source archive leaves the study out."""
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", PAGES[page]):
        file = (ROOT / page).parent / target
        in_study = file.resolve().is_relative_to(ROOT / "study")
        assert file.exists() or (in_study and not (ROOT / "study").exists()), target


@pytest.mark.parametrize("page", sorted({*PAGES} - {"docs/extending.md"}))
def test_every_file_that_is_named_exists(page):
    """The page of worked examples names the files that its reader writes."""
    folders = r"(?:tests|sphere_pl|benchmarks|callbacks|conf|examples|docs)"
    for name in re.findall(rf"(?<![\w./-])({folders}/[\w/.-]+\.(?:py|json|md|png|toml|txt|yaml))\b", PAGES[page]):
        assert (ROOT / name).exists(), name


def test_the_index_leads_to_every_page():
    linked = set(re.findall(r"\]\((\w[\w-]*\.md)\)", INDEX))
    assert linked == {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}


def test_the_citation_names_this_version_and_the_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    (paper,) = cited["references"]
    (bibtex,) = blocks("bibtex")
    for part in (paper["title"], paper["url"], *(author["family-names"] for author in paper["authors"])):
        assert part in bibtex


def test_every_benchmark_that_is_named_answers(monkeypatch, capsys):
    """In this process: each of its own would load the same libraries again."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT)
    named = re.findall(r"python -m (benchmarks[.\w]*|study)", "\n".join(PAGES.values()))
    for module in sorted({name.rstrip(".") for name in named} - {"benchmarks.readme"}):  # that one takes no arguments
        monkeypatch.setattr(sys, "argv", [module, "--help"])
        if "." in module:
            monkeypatch.delitem(sys.modules, module, raising=False)  # another test may have imported it
        monkeypatch.delitem(sys.modules, f"{module}.__main__", raising=False)
        with pytest.raises(SystemExit) as end:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        assert (end.value.code or 0, module) == (0, module)
        assert "usage:" in capsys.readouterr().out, module


@pytest.mark.parametrize("page", ["README.md", "docs/start.md"])
def test_the_facts_of_ones_own_are_read(page, tmp_path):
    from sphere_pl import EditDataModule

    (text,) = blocks("json", PAGES[page])
    (tmp_path / "mine.jsonl").write_text(text, encoding="utf-8")
    data = EditDataModule("jsonl", str(tmp_path / "mine.jsonl"))
    data.setup("fit")
    assert len(data.requests) == len(text.splitlines()) >= 2
    assert data.requests[0].question == "The capital of Norway is"


def first_screen(model, tokenizer, folder):
    """Run the Python of the first screen on a model in a folder; returns what it says."""
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    code = blocks("python")[0]
    assert code.count(NAME) == 1
    script = folder / "readme.py"
    script.write_text(code.replace(NAME, str(folder / "model")), encoding="utf-8")
    command = [sys.executable, script]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_python_of_the_first_screen_runs_on_a_tiny_model(tiny_lm, tmp_path):
    lm = tiny_lm()
    config = lm.model.config
    config.num_hidden_layers = 8  # the default run edits 2 to 6
    said = first_screen(AutoModelForCausalLM.from_config(config), lm.tokenizer, tmp_path)
    assert "2 edits" in said
    assert re.search(r"│ efficacy +│", said)
    assert "The capital of Norway is" in said.splitlines()[-1]


@pytest.mark.slow
def test_the_python_of_the_first_screen_edits_both_facts(tmp_path):
    from sphere_pl.model.loading import load_language_model

    lm = load_language_model()
    said = first_screen(lm.model, lm.tokenizer, tmp_path)
    assert re.search(r"│ efficacy +│ +0\.000.*│ +1\.000", said)
    assert "The capital of Norway is Bergen" in said.splitlines()[-1]
